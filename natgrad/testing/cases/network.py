"""A small network, its data and the family of its outputs, from kinds and seeds."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional as F

from natgrad.testing.likelihoods import FAMILIES, draw
from natgrad.testing.networks import make_network

BY_ELEMENT = ("mse", "bernoulli")  # torch averages these losses over elements, not over samples


@dataclass(frozen=True)
class NetworkCase:
    """A network with three outputs, and data.

    Attributes
    ----------
    network
        The kind of network, of :mod:`natgrad.testing.networks`.
    family
        The family of distributions, of :data:`natgrad.testing.likelihoods.FAMILIES`, whose
        parameters the outputs are.
    seed
        Seed of weights, inputs and labels.
    rows
        The samples to keep, in this order; None keeps all.
    reduction
        The reduction of the loss, "mean" or "sum".
    chunk_size
        The number of samples that an operator takes at once; None takes all.
    weighted
        Whether samples have different weights.
    reverse
        Whether the parameters are listed in reverse.
    frozen
        Whether the first parameter is frozen.
    draws
        Labels to draw for each sample, for operators that draw.
    draw_seed
        Seed of these labels.
    dtype
        The dtype of parameters and floating-point data.
    """

    network: str = "mlp"
    family: str = "categorical"
    seed: int = 0
    rows: tuple[int, ...] | None = None
    reduction: str = "mean"
    chunk_size: int | None = None
    weighted: bool = False
    reverse: bool = False
    frozen: bool = False
    draws: int = 1
    draw_seed: int = 0
    dtype: torch.dtype = torch.float64

    def __repr__(self) -> str:
        shown = [repr(self.network), repr(self.family)]
        for field in fields(self)[2:]:
            value = getattr(self, field.name)
            shown += [] if value == field.default else [f"{field.name}={value!r}"]
        return f"NetworkCase({', '.join(shown)})"

    @cached_property
    def _made(self) -> tuple[nn.Module, Tensor]:
        with torch.inference_mode(False), torch.no_grad():
            network, inputs = make_network(self.network, torch.Generator().manual_seed(self.seed))
            network = network.to(self.dtype)
            if self.frozen:
                next(network.parameters()).requires_grad_(False)
            return network, inputs.to(self.dtype) if inputs.is_floating_point() else inputs

    @property
    def model(self) -> nn.Module:
        """The network, in training mode."""
        return self._made[0]

    @property
    def inputs(self) -> Tensor:
        """Inputs (N, ...)."""
        return self._picked(self._made[1])

    @cached_property
    def _labels(self) -> Tensor:
        # Drawn from other outputs than the model's, so that no loss is near its minimum.
        generator = torch.Generator().manual_seed(self.seed + 1)
        outputs = torch.randn(len(self._made[1]), 3, generator=generator, dtype=torch.float64)
        labels = draw(FAMILIES[self.family](outputs), self.seed)
        return labels.to(self.dtype) if labels.is_floating_point() else labels

    @property
    def targets(self) -> Tensor:
        """Labels (N, ...), independent of the model's outputs."""
        return self._picked(self._labels)

    @property
    def weights(self) -> Tensor | None:
        """Weights (N,) of the samples; None unless ``weighted``."""
        if not self.weighted:
            return None
        whole = torch.linspace(0.25, 2.0, len(self._made[1]), dtype=self.dtype)
        return self._picked(whole)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters, in the order of an operator's rows."""
        found = list(self.model.parameters())
        return found[::-1] if self.reverse else found

    @property
    def n(self) -> int:
        """The number of entries of all parameters."""
        return sum(parameter.numel() for parameter in self.parameters)

    @property
    def terms(self) -> int:
        """The divisor of a mean loss: samples, or elements where torch averages over them."""
        return len(self.targets) * (3 if self.family in BY_ELEMENT else 1)

    @property
    def eps(self) -> float:
        """The machine precision of ``dtype``."""
        return torch.finfo(self.dtype).eps

    def distribution(self, x: Tensor) -> Distribution:
        """The distribution of the model's outputs, of batch shape (N,).

        Parameters
        ----------
        x
            Inputs (N, ...).
        """
        return FAMILIES[self.family](self.model(x))

    def log_probs(self, x: Tensor, targets: Tensor) -> Tensor:
        """The log-likelihood of each sample (N,).

        Parameters
        ----------
        x
            Inputs (N, ...).
        targets
            Labels (N, ...).
        """
        found: Tensor = self.distribution(x).log_prob(targets)
        return found

    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of outputs: torch's function where there is one, else −log p by samples.

        Parameters
        ----------
        outputs
            The model's outputs (N, 3).
        targets
            Labels (N, ...).
        """
        if self.family == "categorical":
            return F.cross_entropy(outputs, targets, reduction=self.reduction)
        if self.family == "mse":
            return F.mse_loss(outputs, targets, reduction=self.reduction)
        if self.family == "bernoulli":
            return F.binary_cross_entropy_with_logits(outputs, targets, reduction=self.reduction)
        log_probs = FAMILIES[self.family](outputs).log_prob(targets)
        return -(log_probs.sum() if self.reduction == "sum" else log_probs.mean())

    def loss(self, x: Tensor, targets: Tensor) -> Tensor:
        """The loss of the model.

        Parameters
        ----------
        x
            Inputs (N, ...).
        targets
            Labels (N, ...).
        """
        return self.criterion(self.model(x), targets)

    def vectors(self, count: int, seed: int = 0) -> Tensor:
        """Standard normal vectors (n, count) of the case's dtype.

        Parameters
        ----------
        count
            The number of vectors.
        seed
            Their seed.
        """
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(count, self.n, generator=generator, dtype=torch.float64)
        return drawn.to(self.dtype).mT.contiguous()

    def pieces(self, v: Tensor) -> list[Tensor]:
        """Split a vector into pieces of the parameters' shapes.

        Parameters
        ----------
        v
            The vector (n,).
        """
        found, start = [], 0
        for parameter in self.parameters:
            end = start + parameter.numel()
            found.append(v[start:end].view(parameter.shape))
            start = end
        return found

    def reversal(self) -> Tensor:
        """The indices (n,) of the entries when the parameters are listed in reverse."""
        places = self.pieces(torch.arange(self.n))
        return torch.cat([piece.reshape(-1) for piece in places[::-1]])

    def move(self, seed: int) -> None:
        """Move the parameters by 0.3 times a standard normal vector.

        Parameters
        ----------
        seed
            Seed of the vector.
        """
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters:
                step = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.3 * step)

    def _picked(self, values: Tensor) -> Tensor:
        return values if self.rows is None else values[list(self.rows)]
