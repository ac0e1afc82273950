"""A small network to be trained, from the kinds of it and a seed."""

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
    """A network of :mod:`natgrad.testing.networks` with a batch, and ``scale`` times a loss:
    "categorical" (cross entropy) or "squared" (mean squared error).

    ``form`` is how the optimizer steps: by a "closure", a "bare closure", "residuals", or "plain".
    """

    network: str = "mlp"
    loss_kind: str = "categorical"
    form: str = "closure"
    seed: int = 0
    scale: float = 1.0
    dtype: torch.dtype = DOUBLE
    rows: tuple[int, int] | None = None  # of the batch, from and to; all of them where None

    def __repr__(self) -> str:
        given = [repr(self.network), repr(self.loss_kind), repr(self.form)]
        given += [f"seed={self.seed}"] if self.seed else []
        given += [f"scale={self.scale:g}"] if self.scale != 1 else []
        given += [f"dtype={self.dtype}"] if self.dtype != DOUBLE else []
        given += [f"rows={self.rows}"] if self.rows else []
        return f"Training({', '.join(given)})"

    def model(self) -> nn.Module:
        """A new one, with the same weights every time."""
        network, _ = make_network(self.network, torch.Generator().manual_seed(self.seed))
        return network.to(self.dtype)

    @cached_property
    def batch(self) -> tuple[Tensor, Tensor]:
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
        x, targets = self.batch
        outputs = model(x if inputs is None else inputs)
        if self.loss_kind == "categorical":
            loss = F.cross_entropy(outputs, targets)
        else:
            loss = F.mse_loss(outputs, targets)
        return self.scale * loss

    def residuals(self, model: nn.Module, inputs: Tensor | None = None) -> Tensor:
        """r, of which ½‖r‖² is minimised."""
        x, targets = self.batch
        outputs: Tensor = model(x if inputs is None else inputs)
        return math.sqrt(self.scale) * (outputs - targets).flatten()

    def times(self, factor: float) -> Training:
        return replace(self, scale=self.scale * factor)

    def in_dtype(self, dtype: torch.dtype) -> Training:
        return replace(self, dtype=dtype)

    def of_even_length(self) -> Training:
        """Without the last sample, where their number is odd."""
        return replace(self, rows=(0, len(self.batch[0]) // 2 * 2))

    def half(self, index: int) -> Training:
        size = len(self.batch[0]) // 2
        return replace(self, rows=(index * size, (index + 1) * size))
