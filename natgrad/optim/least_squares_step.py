"""The step of a linearised least-squares problem for any radius, by one of three solvers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from natgrad.optim.linearised import Linearised
from natgrad.optim.trust_region_search import SolveRadius
from natgrad.solvers import Solution, SteihaugPath, cg, least_squares, sample_space

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


def step_for(
    linear: Linearised,
    method: Method,
    *,
    damping: float,
    prior: Tensor | None,
    rtol: float,
    max_iterations: int | None,
) -> SolveRadius:
    """radius ↦ s minimising ½‖r + J s‖² + ½ λ‖s − s₀‖² over ‖s − s₀‖ <= radius, s₀ the ``prior``.

    ``Ax`` of the answer is JᵀJ s. One decomposition, or one Krylov path, serves every radius.
    """
    r = linear.r if prior is None else linear.r + linear.forward(prior)
    solve = _from_zero(linear, method, r, damping, rtol, max_iterations)
    if prior is None:
        return solve
    image = linear.multiply(prior)

    def moved(*, radius: float) -> Solution[Tensor]:
        found = solve(radius=radius)
        return replace(found, x=prior + found.x, Ax=image + found.Ax)

    return moved


def _from_zero(
    linear: Linearised,
    method: Method,
    r: Tensor,
    damping: float,
    rtol: float,
    max_iterations: int | None,
) -> SolveRadius:
    if method == "cg":
        return _by_products(linear, linear.transpose(r), damping, rtol, max_iterations)
    direct: Callable[..., Solution[Tensor]]
    direct = (least_squares(linear.dense()) if method == "dense" else sample_space(linear)).solve

    def solve(*, radius: float) -> Solution[Tensor]:
        found = direct(r, damping=damping, radius=radius)
        return replace(found, x=-found.x, Ax=-found.Ax)

    return solve


def _by_products(
    linear: Linearised, g: Tensor, damping: float, rtol: float, max_iterations: int | None
) -> SolveRadius:
    def multiply(v: Tensor) -> Tensor:
        return linear.multiply(v) + damping * v

    path = SteihaugPath(multiply, g, rtol=rtol, max_iterations=max_iterations)

    def solve(*, radius: float) -> Solution[Tensor]:
        if radius < math.inf:
            found = path.solve(radius)
        else:
            found = cg(multiply, -g, rtol=rtol, max_iterations=max_iterations)
        return replace(found, Ax=found.Ax - damping * found.x)

    return solve


def cauchy_length(linear: Linearised, g: Tensor, theta: Tensor) -> float:
    """‖g‖³ / ‖J g‖², how far the model falls along −g; ‖θ‖, or 1, where J g = 0."""
    g_norm = torch.linalg.vector_norm(g, dtype=torch.float64)
    image = linear.forward((g.double() / g_norm).to(g))
    length = g_norm / image.double().square().sum()
    if not bool((length > 0) & torch.isfinite(length)):
        length = torch.linalg.vector_norm(theta, dtype=torch.float64)
    return float(length) or 1.0
