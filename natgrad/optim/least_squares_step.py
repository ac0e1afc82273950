"""The step of a linearised least-squares problem for any radius, by one of three solvers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from natgrad.optim.linearised import Linearised
from natgrad.solvers import Solution, SteihaugPath, cg, least_squares, sample_space
from natgrad.solvers.scaling import norm

Method = Literal["dense", "sample_space", "cg"]
# More backward passes than this for J cost more than conjugate gradients.
MAX_PASSES = 256
# Of a J that the caller hands over, a decomposition is all that it costs.
MAX_GIVEN = 4000


def cheapest(linear: Linearised) -> Method:
    """The method for these sizes: see :class:`natgrad.optim.LevenbergMarquardt`."""
    m, n = len(linear.r), linear.n
    if min(m, n) > (MAX_GIVEN if linear.given else MAX_PASSES):
        return "cg"
    return "dense" if n <= m else "sample_space"


class LeastSquaresStep:
    """radius ↦ s minimising ½‖r + J s‖² + ½ λ‖D (s − s₀)‖² over ‖D (s − s₀)‖ <= radius.

    s₀ is the ``prior`` or 0, D the diagonal ``scale`` or I. ``Ax`` of an answer is JᵀJ s. One
    decomposition of J D⁻¹, or one Krylov path, serves every radius.
    """

    def __init__(
        self,
        linear: Linearised,
        method: Method,
        *,
        damping: float,
        prior: Tensor | None = None,
        scale: Tensor | None = None,
        rtol: float = 1e-6,
        max_iterations: int | None = None,
    ) -> None:
        self._linear, self._damping, self._scale, self._prior = linear, damping, scale, prior
        self._r = linear.r if prior is None else linear.r + linear.forward(prior)
        self._image = None if prior is None else linear.multiply(prior)
        self._rtol, self._max_iterations = rtol, max_iterations
        self._path: SteihaugPath[Tensor] | None = None
        if method == "dense":
            J = linear.dense()
            self._direct = least_squares(J if scale is None else J / scale).solve
        elif method == "sample_space":
            self._direct = sample_space(linear if scale is None else linear.scaled(scale)).solve
        else:
            self._path = SteihaugPath(
                self._multiply, linear.transpose(self._r), rtol=rtol, max_iterations=max_iterations
            )

    def __call__(self, *, radius: float) -> Solution[Tensor]:
        found = self._from_prior(radius)
        if self._prior is None or self._image is None:
            return found
        return replace(found, x=self._prior + found.x, Ax=self._image + found.Ax)

    def norm(self, s: Tensor) -> Tensor:
        """‖D s‖, 0-d float64."""
        return norm(s if self._scale is None else self._scale * s)

    def bend(self, s: Solution[Tensor], second: Tensor, limit: float) -> Tensor:
        """½ a of the path θ + s t + ½ a t² (geodesic acceleration): (JᵀJ + (λ + μ) D²) a = −Jᵀr″,
        r″ (m,) the ``second`` derivative of r along s and μ the multiplier of s.

        Zero where ‖D a‖ > ``limit`` ‖D s‖: the series is not to be trusted there.
        """
        a = -self._direct(second, damping=self._damping + s.multiplier).x
        a = a if self._scale is None else a / self._scale
        trusted = self.norm(a) <= limit * self.norm(s.x)
        return torch.where(trusted, a / 2, 0.0)

    def _from_prior(self, radius: float) -> Solution[Tensor]:
        if self._path is not None:
            if radius < math.inf:
                found = self._path.solve(radius)
            else:
                found = cg(
                    self._multiply, -self._linear.transpose(self._r), rtol=self._rtol,
                    max_iterations=self._max_iterations,
                )  # fmt: skip
            return replace(found, Ax=found.Ax - self._damping * found.x)
        found = self._direct(self._r, damping=self._damping, radius=radius)
        if self._scale is None:
            return replace(found, x=-found.x, Ax=-found.Ax)
        return replace(found, x=-found.x / self._scale, Ax=-found.Ax * self._scale)

    def _multiply(self, v: Tensor) -> Tensor:
        return self._linear.multiply(v) + self._damping * v


def cauchy_length(
    linear: Linearised, g: Tensor, theta: Tensor, scale: Tensor | None = None
) -> float:
    """‖g‖³ / ‖J g‖², how far the model falls along −g; ‖θ‖, or 1, where J g = 0. In the coordinates
    D θ where there is a ``scale``."""
    if scale is not None:
        g, theta = g / scale, scale * theta
    unit = (g.double() / norm(g)).to(g)
    image = linear.forward(unit if scale is None else unit / scale)
    length = norm(g) / norm(image).square()
    if not bool((length > 0) & torch.isfinite(length)):
        length = norm(theta)
    return float(length) or 1.0
