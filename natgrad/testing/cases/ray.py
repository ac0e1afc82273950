"""A smooth function along a step, which may leave its domain."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ray:
    """f(θ) = ``scale`` · Σᵢ (½ cᵢ θᵢ² + θᵢ⁴ / 20) from a standard normal start, along −``length``
    times its gradient (with ``uphill`` along the gradient). From the share ``edge`` of the step on
    f is ``outside``."""

    curvatures: tuple[float, ...]
    length: float = 1.0
    seed: int = 0
    scale: float = 1.0
    uphill: bool = False
    edge: float = math.inf
    outside: float = math.nan

    @cached_property
    def start(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(len(self.curvatures), generator=generator, dtype=torch.float64)

    @property
    def step(self) -> Tensor:
        return (self.length if self.uphill else -self.length) * self._unit_gradient(self.start)

    def value(self, theta: Tensor) -> Tensor:
        if self.share(theta) >= self.edge:
            return torch.tensor(self.outside, dtype=torch.float64)
        return self.scale * (theta**2 @ self._c / 2 + (theta**4).sum() / 20)

    def gradient(self, theta: Tensor) -> Tensor:
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
        """How far along the step θ is; only asked of points on it."""
        if self.edge == math.inf:
            return 0.0
        step = self.step
        return float((theta - self.start) @ step / (step @ step))

    def _unit_gradient(self, theta: Tensor) -> Tensor:
        return self._c * theta + theta**3 / 5

    @property
    def _c(self) -> Tensor:
        return torch.tensor(self.curvatures, dtype=torch.float64)
