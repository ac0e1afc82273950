"""A small network to train, from its kind and a seed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from natgrad.testing.networks import CLASSES, make_network

DOUBLE = torch.float64


@dataclass(frozen=True)
class Training:
    """A network with a batch and a loss.

    Attributes
    ----------
    network
        The kind of network, of :mod:`natgrad.testing.networks`.
    loss_kind
        "categorical" (cross entropy) or "squared" (mean squared error).
    form
        How the optimizer steps: "closure", "bare closure", "residuals" or "plain", as listed in
        :class:`natgrad.testing.subjects.optimizer.Optimizer`.
    seed
        Seed of weights and batch.
    scale
        A factor of the loss, its unit.
    dtype
        The dtype of parameters and floating-point data.
    rows
        The first sample of the batch and the one after the last; None takes all.
    """

    network: str = "mlp"
    loss_kind: str = "categorical"
    form: str = "closure"
    seed: int = 0
    scale: float = 1.0
    dtype: torch.dtype = DOUBLE
    rows: tuple[int, int] | None = None

    def __repr__(self) -> str:
        given = [repr(self.network), repr(self.loss_kind), repr(self.form)]
        given += [f"seed={self.seed}"] if self.seed else []
        given += [f"scale={self.scale:g}"] if self.scale != 1 else []
        given += [f"dtype={self.dtype}"] if self.dtype != DOUBLE else []
        given += [f"rows={self.rows}"] if self.rows else []
        return f"Training({', '.join(given)})"

    def model(self) -> nn.Module:
        """A new model, with the same weights every time."""
        network, _ = make_network(self.network, torch.Generator().manual_seed(self.seed))
        return network.to(self.dtype)

    @cached_property
    def batch(self) -> tuple[Tensor, Tensor]:
        """Inputs (N, ...) and targets (N,) or (N, 3)."""
        _, inputs = make_network(self.network, torch.Generator().manual_seed(self.seed))
        draw = torch.Generator().manual_seed(self.seed + 1)
        if self.loss_kind == "categorical":
            targets = torch.randint(0, CLASSES, (len(inputs),), generator=draw)
        else:
            targets = torch.randn(len(inputs), CLASSES, generator=draw, dtype=DOUBLE)
            targets = targets.to(self.dtype)
        inputs = inputs.to(self.dtype) if inputs.is_floating_point() else inputs
        chosen = slice(*self.rows) if self.rows else slice(None)
        return inputs[chosen], targets[chosen]

    def loss(self, model: nn.Module, inputs: Tensor | None = None) -> Tensor:
        """The scaled loss of a model, with its graph.

        Parameters
        ----------
        model
            The model.
        inputs
            Inputs in place of the batch's own; None takes those.
        """
        x, targets = self.batch
        outputs = model(x if inputs is None else inputs)
        if self.loss_kind == "categorical":
            loss = F.cross_entropy(outputs, targets)
        else:
            loss = F.mse_loss(outputs, targets)
        return self.scale * loss

    def residuals(self, model: nn.Module, inputs: Tensor | None = None) -> Tensor:
        """Residuals r (m,) of a model with their graph; "residuals" minimises ½‖r‖².

        Parameters
        ----------
        model
            The model.
        inputs
            Inputs in place of the batch's own; None takes those.
        """
        x, targets = self.batch
        outputs: Tensor = model(x if inputs is None else inputs)
        return math.sqrt(self.scale) * (outputs - targets).flatten()

    def times(self, factor: float) -> Training:
        """The same training with another unit of the loss.

        Parameters
        ----------
        factor
            Multiplies the scale.
        """
        return replace(self, scale=self.scale * factor)

    def in_dtype(self, dtype: torch.dtype) -> Training:
        """The same training in another dtype.

        Parameters
        ----------
        dtype
            As the attribute.
        """
        return replace(self, dtype=dtype)

    def of_even_length(self) -> Training:
        """The same training without the last sample where their number is odd."""
        return replace(self, rows=(0, len(self.batch[0]) // 2 * 2))

    def half(self, index: int) -> Training:
        """The training on one half of the batch.

        Parameters
        ----------
        index
            0 for the first half, 1 for the second.
        """
        size = len(self.batch[0]) // 2
        return replace(self, rows=(index * size, (index + 1) * size))
