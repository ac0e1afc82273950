"""A direct solve of a symmetric positive definite system, for n up to a few thousand."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from natgrad.solvers.checks import check_damping, check_tolerances
from natgrad.solvers.linear_map import LinearMap
from natgrad.solvers.problem import as_kind, pose
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
    """Solve (A + λ I) x = b, λ the damping, by a Cholesky factor, and verify the solution.

    Parameters
    ----------
    A
        Symmetric (n, n), an operator, matrix or function, as in :func:`cg`.
    b
        Right-hand side (n,), or (n, k) of k columns, each with a status of its own.
    damping
        λ >= 0, in A's units. Raise it where A is not positive definite.
    rtol
        Relative residual that the solution must reach to count as CONVERGED.
    jitter
        Whether to try n eps ‖A‖ · 10ʲ, j = 0 … 7, on the diagonal where the factorisation fails in
        float64. Turn it off to have indefinite A found at once.

    Returns
    -------
    Solution
        ``Ax`` is A x without the damping; ``iterations`` counts the factorisations tried. The
        status is CONVERGED only where the residual of the system *as given*, in float64 and of x as
        returned, is at most rtol ‖b‖; STAGNATED otherwise (a singular system that jitter
        regularised, say, or a condition that float32 cannot hold); NEGATIVE_CURVATURE, with the
        lowest eigenvector as ``direction``, where no factor exists.

    Raises
    ------
    ValueError, TypeError
        For a damping that is negative or not finite, an A that is not symmetric, and as
        :func:`cg` does.

    Notes
    -----
    ``x`` carries derivatives in b and A where these require gradients, at one more solve each:
    :mod:`natgrad.solvers.implicit`.

    Where the factorisation fails in float32 it is tried in float64, then with jitter. Up to three
    steps of refinement with the residual of the system as given follow.

    Cost: n³ / 3 operations a factorisation, n² memory; n products where A is no matrix.

    Examples
    --------
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
    matrix = problem.multiply(rhs.new_ones(n).diag())
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
    wide = _shifted(scaled, shift)
    b_scale = torch.stack([power_of_two(column) for column in columns.mT])
    # Each column at unit size; one that is not finite is left out of the solve.
    sound = torch.isfinite(columns).all(dim=0)
    hat = torch.where(sound, columns.double() / b_scale.double(), 0.0)

    def solutions(
        x: Tensor, status: Status, tries: int, direction: Tensor | None = None
    ) -> Solution[V]:
        found = []
        for column in range(columns.shape[1]):
            b, unit = hat[:, column], b_scale[column].double()
            answer, kept = unscale(x[:, column], unit, A_scale, rhs.dtype)
            # The residual is that of x as returned, after rounding.
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
            count, residual_norm = products if column == 0 else 0, float(norm_here * unit)
            found.append(Solution(answer, Ax, own, tries, count, residual_norm, direction))
        whole = stack(found) if rhs.ndim == 2 else found[0]
        return problem.differentiable(as_kind(whole, in_numpy=problem.in_numpy), again)

    def again(rhs: Tensor) -> Solution[Tensor]:
        return cholesky(A, rhs, damping=damping, rtol=rtol, jitter=jitter)

    zero = torch.zeros_like(hat)
    if not bool(torch.isfinite(wide).all()):
        return solutions(zero, Status.NONFINITE, 0)
    factor, tries = _factorise(wide, rhs.dtype, jitter)
    if factor is not None:
        return solutions(_refine(wide, factor, hat, rtol), Status.CONVERGED, tries)
    eigenvalues, vectors = torch.linalg.eigh(wide)
    direction = vectors[:, 0].to(rhs) if bool(eigenvalues[0] <= 0) else None
    return solutions(zero, Status.NEGATIVE_CURVATURE, tries, direction)


def _shifted(matrix: Tensor, shift: Tensor) -> Tensor:
    return matrix + shift.expand(len(matrix)).diag()


def _factorise(matrix: Tensor, dtype: torch.dtype, jitter: bool) -> tuple[Tensor | None, int]:
    """A Cholesky factor, None where there is none, and the number of factorisations tried."""
    rung = len(matrix) * torch.finfo(torch.float64).eps * torch.linalg.matrix_norm(matrix)
    attempts = [matrix.to(dtype)] if dtype == torch.float32 else []
    attempts.append(matrix)
    tries = 0
    for power in (0.0, *(LADDER if jitter else ())):
        for attempt in attempts if power == 0.0 else [_shifted(matrix, power * rung)]:
            factor, info = torch.linalg.cholesky_ex(attempt)
            tries += 1
            if bool(info == 0) and bool(torch.isfinite(factor).all()):
                return factor, tries
    return None, tries


def _refine(matrix: Tensor, factor: Tensor, b: Tensor, rtol: float) -> Tensor:
    """Solve with the factor, and refine x (n, k) in float64."""
    x = torch.zeros_like(b)
    best = torch.linalg.vector_norm(b, dim=0)
    for _ in range(1 + REFINEMENTS):
        residual = b - matrix @ x
        better = x + torch.cholesky_solve(residual.to(factor), factor).double()
        remaining = torch.linalg.vector_norm(b - matrix @ better, dim=0)
        x = torch.where(remaining < best, better, x)
        best = torch.minimum(remaining, best)
        # Half the tolerance: rounding x to b's dtype may use the rest.
        if bool((best <= 0.5 * rtol * torch.linalg.vector_norm(b, dim=0)).all()):
            break
    return x
