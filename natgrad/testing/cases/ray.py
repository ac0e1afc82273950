"""A smooth function along a step, which may leave the function's domain."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ray:
    """f(θ) = scale · Σᵢ (½ cᵢ θᵢ² + θᵢ⁴ / 20) along a multiple of its gradient, in float64.

    Attributes
    ----------
    curvatures
        The coefficients cᵢ, none negative.
    length
        The step is −``length`` times the gradient of f / scale.
    seed
        Seed of the standard normal start.
    scale
        A factor of f, its unit.
    uphill
        Whether the step goes along the gradient instead.
    edge
        The share of the step at which f's domain ends; infinite for no end.
    outside
        The value of f, and of its gradient's entries, from the edge on.
    """

    curvatures: tuple[float, ...]
    length: float = 1.0
    seed: int = 0
    scale: float = 1.0
    uphill: bool = False
    edge: float = math.inf
    outside: float = math.nan

    @cached_property
    def start(self) -> Tensor:
        """The start (n,)."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(len(self.curvatures), generator=generator, dtype=torch.float64)

    @property
    def step(self) -> Tensor:
        """The whole step (n,)."""
        return (self.length if self.uphill else -self.length) * self._unit_gradient(self.start)

    def value(self, theta: Tensor) -> Tensor:
        """f at a point.

        Parameters
        ----------
        theta
            The point (n,), on the step where ``edge`` is finite.
        """
        if self.share(theta) >= self.edge:
            return torch.tensor(self.outside, dtype=torch.float64)
        return self.scale * (theta**2 @ self._c / 2 + (theta**4).sum() / 20)

    def gradient(self, theta: Tensor) -> Tensor:
        """The gradient (n,) of f at a point.

        Parameters
        ----------
        theta
            The point (n,), on the step where ``edge`` is finite.
        """
        if self.share(theta) >= self.edge:
            return torch.full_like(theta, self.outside)
        return self.scale * self._unit_gradient(theta)

    def __repr__(self) -> str:
        kept = [
            f"{field.name}={value!r}"
            for field in fields(self)
            if (value := getattr(self, field.name)) is not field.default
        ]
        return f"Ray({', '.join(kept)})"

    def share(self, theta: Tensor) -> float:
        """The share of the step that leads to a point; 0 where no edge asks for it.

        Parameters
        ----------
        theta
            The point (n,), on the step.
        """
        if self.edge == math.inf:
            return 0.0
        step = self.step
        return float((theta - self.start) @ step / (step @ step))

    def _unit_gradient(self, theta: Tensor) -> Tensor:
        return self._c * theta + theta**3 / 5

    @property
    def _c(self) -> Tensor:
        return torch.tensor(self.curvatures, dtype=torch.float64)
