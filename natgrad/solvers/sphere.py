"""The derivative of a step on a trust-region radius: one solve in the sphere's tangent space."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from natgrad.solvers.cg import cg
from natgrad.solvers.scaling import power_of_two
from natgrad.solvers.solution import Solution

Product = Callable[[Tensor], Tensor]


def solve_in_tangent(
    product: Product,
    b: Tensor,
    x: Tensor,
    cotangent: Tensor,
    *,
    rtol: float,
    max_iterations: int | None,
) -> Solution[Tensor]:
    """Solve T (A + μ I) T u = T x̄ for u in the tangent space, T = I − x xᵀ / ‖x‖².

    The step obeys (A + μ I) x = b and ‖x‖ = Δ. By their differentials, with uᵀx = 0,

        x̄ᵀ dx = uᵀ(A + μ I) dx = uᵀ(db − dA x − dμ x) = uᵀ db − uᵀ dA x,

    so that u is the cotangent of b, as inside the radius, and μ needs none.

    Parameters
    ----------
    product
        v ↦ A v, or (A + λ I) v: a damping is part of μ.
    b
        The right-hand side, with its graph.
    x
        The step, with its graph.
    cotangent
        x̄.
    rtol, max_iterations
        As in :func:`cg`.

    Returns
    -------
    Solution
        u. In the hard case, where the step is one of several, the derivative is that of its branch.

    Notes
    -----
    Cost: one solve by :func:`cg`, and one product for μ.

    Source: the conditions of Nocedal & Wright, *Numerical Optimization*, 2006, theorem 4.1.
    """
    unit = power_of_two(x.detach())
    length = torch.linalg.vector_norm(x / unit)
    normal = x / unit / length
    image = product(normal)
    mu = normal @ (b / unit / length - image)
    # Any curvature along x, or rounding along x would meet a zero one.
    beside = (torch.linalg.vector_norm(image) + mu.abs()).detach()

    def tangent(v: Tensor) -> Tensor:
        along: Tensor = (normal @ v) * normal
        return v - along

    def restricted(v: Tensor) -> Tensor:
        part = tangent(v)
        found: Tensor = tangent(product(part) + mu * part) + beside * (v - part)
        return found

    return cg(restricted, tangent(cotangent), rtol=rtol, max_iterations=max_iterations)
