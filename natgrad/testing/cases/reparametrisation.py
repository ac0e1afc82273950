"""A regression whose Fisher matrix is regular, in two coordinate systems."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DOUBLE = torch.float64
SAMPLES, INPUTS, OUTPUTS = 24, 2, 2


class Curved(nn.Module):
    """A model with the outputs (0, 2 tanh(W x + b)), which are logits or means.

    The first output is fixed, so that no parameter is redundant.

    Parameters
    ----------
    theta
        The initial W and b (n,).
    """

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.parameter = nn.Parameter(theta.clone())

    def theta(self) -> Tensor:
        """W and b (n,), with their graph."""
        return self.parameter

    def forward(self, x: Tensor) -> Tensor:
        """The outputs (N, 3).

        Parameters
        ----------
        x
            Inputs (N, 2).
        """
        weights = self.theta().view(OUTPUTS, INPUTS + 1)
        return F.pad(2 * F.linear(x, weights[:, 1:], weights[:, 0]).tanh(), (1, 0))


class Reparametrised(Curved):
    """The same model with the parameter ξ, where θ = T ξ + c.

    Parameters
    ----------
    theta
        The initial θ (n,).
    T
        A regular matrix (n, n).
    c
        A shift (n,).
    """

    def __init__(self, theta: Tensor, T: Tensor, c: Tensor) -> None:
        super().__init__(torch.linalg.solve(T, theta - c))
        self.register_buffer("T", T)
        self.register_buffer("c", c)

    def theta(self) -> Tensor:
        """θ = T ξ + c (n,), with its graph."""
        T, c = self.get_buffer("T"), self.get_buffer("c")
        return T @ self.parameter + c


@dataclass(frozen=True)
class Regression:
    """:class:`Curved` on 24 standard normal inputs.

    Attributes
    ----------
    loss_kind
        "categorical" (cross entropy) or "squared" (mean squared error).
    form
        How the optimizer steps, as in :class:`natgrad.testing.cases.training.Training`.
    seed
        Seed of data, start and coordinates.
    other
        Whether the model is the reparametrised one.
    """

    loss_kind: str = "categorical"
    form: str = "closure"
    seed: int = 0
    other: bool = False

    def __repr__(self) -> str:
        seed = f", seed={self.seed}" if self.seed else ""
        return f"Regression({self.loss_kind!r}, {self.form!r}{seed})"

    @cached_property
    def _drawn(self) -> tuple[Tensor, ...]:
        draw = torch.Generator().manual_seed(self.seed)
        n = OUTPUTS * (INPUTS + 1)
        x = torch.randn(SAMPLES, INPUTS, generator=draw, dtype=DOUBLE)
        theta, c = 0.3 * torch.randn(2, n, generator=draw, dtype=DOUBLE)
        left, _ = torch.linalg.qr(torch.randn(n, n, generator=draw, dtype=DOUBLE))
        right, _ = torch.linalg.qr(torch.randn(n, n, generator=draw, dtype=DOUBLE))
        T = (left * torch.logspace(0, 1, n, dtype=DOUBLE)) @ right
        labels = torch.randint(0, OUTPUTS + 1, (SAMPLES,), generator=draw)
        means = torch.randn(SAMPLES, OUTPUTS + 1, generator=draw, dtype=DOUBLE)
        return x, theta, T, c, labels, means

    def model(self) -> Curved:
        """A new model, at the same θ every time."""
        _, theta, T, c, *_ = self._drawn
        return Reparametrised(theta, T, c) if self.other else Curved(theta)

    def loss(self, model: nn.Module) -> Tensor:
        """The loss of a model, with its graph.

        Parameters
        ----------
        model
            A model that :meth:`model` made.
        """
        x, *_, labels, means = self._drawn
        if self.loss_kind == "categorical":
            return F.cross_entropy(model(x), labels)
        return F.mse_loss(model(x), means)

    def residuals(self, model: nn.Module) -> Tensor:
        """The residuals (m,) of a model to the means, with their graph.

        Parameters
        ----------
        model
            A model that :meth:`model` made.
        """
        x, *_, means = self._drawn
        outputs: Tensor = model(x)
        return (outputs - means)[:, 1:].flatten()

    def in_other_coordinates(self) -> Regression:
        """The same regression with the reparametrised model."""
        return replace(self, other=True)

    def of(self, loss_kind: str) -> Regression:
        """The same regression with another loss.

        Parameters
        ----------
        loss_kind
            As the attribute.
        """
        return replace(self, loss_kind=loss_kind)
