"""A small network, its data and what its outputs mean, from kinds and seeds."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional as F

from natgrad.testing.likelihoods import FAMILIES, draw
from natgrad.testing.networks import make_network

BY_ELEMENT = ("mse", "bernoulli")  # losses that torch averages over elements, not over samples


@dataclass(frozen=True)
class NetworkCase:
    """The network of kind ``network`` (:mod:`natgrad.testing.networks`), whose three outputs are
    those of a ``family`` (:mod:`natgrad.testing.likelihoods`).

    ``rows`` picks samples of the data, in this order; None takes all as they come. ``reduction`` is
    that of the loss, ``chunk_size`` how many samples to take at once, ``weighted`` whether samples
    weigh differently, ``reverse`` lists the parameters the other way round, ``frozen`` holds the
    first of them fixed. ``draws`` labels a sample, by ``draw_seed``, are for operators that draw.
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
        return self._made[0]

    @property
    def inputs(self) -> Tensor:
        return self._picked(self._made[1])

    @cached_property
    def _labels(self) -> Tensor:
        # Of other outputs than the model's, so that no loss is near its minimum.
        generator = torch.Generator().manual_seed(self.seed + 1)
        outputs = torch.randn(len(self._made[1]), 3, generator=generator, dtype=torch.float64)
        labels = draw(FAMILIES[self.family](outputs), self.seed)
        return labels.to(self.dtype) if labels.is_floating_point() else labels

    @property
    def targets(self) -> Tensor:
        """Labels (N, ...), in no relation to what the model says."""
        return self._picked(self._labels)

    @property
    def weights(self) -> Tensor | None:
        """Weights (N,) of samples, where they are weighted."""
        if not self.weighted:
            return None
        whole = torch.linspace(0.25, 2.0, len(self._made[1]), dtype=self.dtype)
        return self._picked(whole)

    @property
    def parameters(self) -> list[nn.Parameter]:
        found = list(self.model.parameters())
        return found[::-1] if self.reverse else found

    @property
    def n(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters)

    @property
    def terms(self) -> int:
        """What the mean of the loss divides by: samples, or elements where torch does so."""
        return len(self.targets) * (3 if self.family in BY_ELEMENT else 1)

    @property
    def eps(self) -> float:
        return torch.finfo(self.dtype).eps

    def distribution(self, x: Tensor) -> Distribution:
        """That of the model's outputs, of batch shape (N,)."""
        return FAMILIES[self.family](self.model(x))

    def log_probs(self, x: Tensor, targets: Tensor) -> Tensor:
        """log p(targets | x) (N,)."""
        found: Tensor = self.distribution(x).log_prob(targets)
        return found

    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of outputs, by torch's functions and their means, else −log p by samples."""
        if self.family == "categorical":
            return F.cross_entropy(outputs, targets, reduction=self.reduction)
        if self.family == "mse":
            return F.mse_loss(outputs, targets, reduction=self.reduction)
        if self.family == "bernoulli":
            return F.binary_cross_entropy_with_logits(outputs, targets, reduction=self.reduction)
        log_probs = FAMILIES[self.family](outputs).log_prob(targets)
        return -(log_probs.sum() if self.reduction == "sum" else log_probs.mean())

    def loss(self, x: Tensor, targets: Tensor) -> Tensor:
        return self.criterion(self.model(x), targets)

    def vectors(self, count: int, seed: int = 0) -> Tensor:
        """Standard normal (n, count) of the case's dtype."""
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(count, self.n, generator=generator, dtype=torch.float64)
        return drawn.to(self.dtype).mT.contiguous()

    def pieces(self, v: Tensor) -> list[Tensor]:
        """A vector (n,) as one piece for each parameter, of its shape."""
        found, start = [], 0
        for parameter in self.parameters:
            end = start + parameter.numel()
            found.append(v[start:end].view(parameter.shape))
            start = end
        return found

    def reversal(self) -> Tensor:
        """The places (n,) of entries once the parameters are listed the other way round."""
        places = self.pieces(torch.arange(self.n))
        return torch.cat([piece.reshape(-1) for piece in places[::-1]])

    def move(self, seed: int) -> None:
        """Write other values into the parameters."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters:
                step = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.3 * step)

    def _picked(self, values: Tensor) -> Tensor:
        return values if self.rows is None else values[list(self.rows)]
