"""A direct solve of a symmetric positive definite system, for n up to a few thousand."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from natgrad.solvers.linear_map import LinearMap
from natgrad.solvers.problem import as_kind, check_damping, check_tolerances, pose
from natgrad.solvers.scaling import norm, power_of_two, rescale, unscale
from natgrad.solvers.solution import Solution, Status, V, stack

LADDER = tuple(10.0**power for power in range(0, 8))
REFINEMENTS = 3


def cholesky(
    A: LinearMap,
    b: V,
    *,
    damping: float = 0.0,
    rtol: float = 1e-5,
    jitter: bool = True,
) -> Solution[V]:
    """Solve (A + λ I) x = b, λ the ``damping``, by a Cholesky factor, and say whether it did.

    ``b`` is (n,) or (n, k), as in :func:`cg`. Where the factorisation fails in float32 it is tried
    in float64; where it fails there, and ``jitter`` allows it, with n eps ‖A‖ · 10ʲ on the
    diagonal, j = 0 … 7. Up to three steps of refinement with the residual of the *asked* system
    follow. The status is CONVERGED only where that residual, in float64 and of x as it is returned,
    is at most rtol ‖b‖; STAGNATED otherwise (a singular system that jitter regularised, say, or a
    condition that float32 cannot hold); NEGATIVE_CURVATURE, with the lowest eigenvector as
    ``direction``, where no factor exists. A column has a status of its own. ``iterations`` counts
    the factorisations tried; ``Ax`` is A x without the damping.

    Raises ``ValueError`` for a damping that is negative or not finite, an A that is not symmetric,
    and as :func:`cg` does.

    Cost: n³ / 3 operations a factorisation, n² memory; n products where A is no matrix.

    >>> cholesky(torch.diag(torch.tensor([1.0, 4.0])), torch.ones(2), damping=1.0).x
    tensor([0.5000, 0.2000])
    """
    problem = pose(A, b, columns=True)
    check_damping(damping)
    check_tolerances(rtol)
    rhs = problem.rhs
    n = len(rhs)
    columns = rhs if rhs.ndim == 2 else rhs.unsqueeze(1)
    products = 0 if isinstance(A, (Tensor, np.ndarray)) else n
    matrix = problem.multiply(torch.eye(n, dtype=rhs.dtype, device=rhs.device))
    asymmetry, largest = (matrix - matrix.mT).abs(), matrix.abs().amax() if n else matrix.sum()
    if bool((asymmetry > math.sqrt(torch.finfo(rhs.dtype).eps) * largest).any()):
        raise ValueError(
            "expected a symmetric A; its antisymmetric part is not rounding. Pass (M + M.mT) / 2 "
            "if the symmetric part is what you mean"
        )

    A_scale = power_of_two(matrix)
    scaled = matrix.double() / A_scale
    scaled = (scaled + scaled.mT) / 2
    shift = damping / A_scale.double()
    identity = torch.eye(n, dtype=torch.float64, device=rhs.device)
    wide = scaled + shift * identity
    b_scale = torch.stack([power_of_two(column) for column in columns.mT])
    # Each column at unit size; one that is not finite has a status and no part in the solve.
    sound = torch.isfinite(columns).all(dim=0)
    hat = torch.where(sound, columns.double() / b_scale.double(), 0.0)

    def solutions(
        x: Tensor, status: Status, tries: int, direction: Tensor | None = None
    ) -> Solution[V]:
        found = []
        for column in range(columns.shape[1]):
            b, unit = hat[:, column], b_scale[column].double()
            answer, kept = unscale(x[:, column], unit, A_scale, rhs.dtype)
            # What is returned is what is judged.
            back, _ = rescale(answer.double(), (A_scale,), (unit,))
            product = scaled @ back
            Ax, _ = rescale(product, (unit,), (), rhs.dtype)
            norm_here, b_norm = norm(b - product - shift * back), norm(b)
            own = status
            finite = torch.isfinite(norm_here) & torch.isfinite(Ax).all()
            if not bool(sound[column] & kept & finite):
                own = Status.NONFINITE
            elif not bool(b_norm > 0):
                own = Status.ZERO_RHS
            elif status is Status.CONVERGED and not bool(norm_here <= rtol * b_norm):
                own = Status.STAGNATED
            found.append(
                Solution(
                    answer, Ax, own, tries,
                    products if column == 0 else 0, float(norm_here * unit), direction,
                )
            )  # fmt: skip
        whole = stack(found) if rhs.ndim == 2 else found[0]
        return as_kind(whole, in_numpy=problem.in_numpy)

    zero = torch.zeros_like(hat)
    if not bool(torch.isfinite(wide).all()):
        return solutions(zero, Status.NONFINITE, 0)
    size = n * torch.finfo(torch.float64).eps * torch.linalg.matrix_norm(wide)
    attempts = [wide.to(rhs)] if rhs.dtype == torch.float32 else []
    attempts.append(wide)
    tries = 0
    for rung in (0.0, *(LADDER if jitter else ())):
        for attempt in attempts if rung == 0.0 else (wide + rung * size * identity,):
            factor, info = torch.linalg.cholesky_ex(attempt)
            tries += 1
            if bool(info == 0) and bool(torch.isfinite(factor).all()):
                return solutions(_refine(wide, factor, hat, rtol), Status.CONVERGED, tries)
    eigenvalues, vectors = torch.linalg.eigh(wide)
    direction = vectors[:, 0].to(rhs) if bool(eigenvalues[0] <= 0) else None
    return solutions(zero, Status.NEGATIVE_CURVATURE, tries, direction)


def _refine(matrix: Tensor, factor: Tensor, b: Tensor, rtol: float) -> Tensor:
    """x (n, k) in float64, whatever the precision of the factor."""
    x = torch.zeros_like(b)
    best = torch.linalg.vector_norm(b, dim=0)
    for _ in range(1 + REFINEMENTS):
        residual = b - matrix @ x
        better = x + torch.cholesky_solve(residual.to(factor), factor).double()
        remaining = torch.linalg.vector_norm(b - matrix @ better, dim=0)
        x = torch.where(remaining < best, better, x)
        best = torch.minimum(remaining, best)
        # Half of it: rounding x to b's dtype may take the rest.
        if bool((best <= 0.5 * rtol * torch.linalg.vector_norm(b, dim=0)).all()):
            break
    return x
