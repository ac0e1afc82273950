"""Lanczos and GLTR: one Krylov basis for solves with every damping and every radius."""

from __future__ import annotations

import torch
from torch import Tensor

from natgrad.solvers.checks import as_count, as_limit, check_tolerances
from natgrad.solvers.krylov import Krylov
from natgrad.solvers.linear_map import LinearMap
from natgrad.solvers.problem import pose
from natgrad.solvers.solution import Solution, V

DEFAULT_LIMIT = 500
# An unusual seed, so that the random start differs from a user's random b.
SEED = 0x9E3779B97F4A7C15


def lanczos(
    A: LinearMap,
    b: V,
    *,
    rtol: float = 1e-5,
    max_iterations: int | None = None,
    search: int | None = None,
    generator: torch.Generator | None = None,
) -> Krylov[V]:
    """The Krylov space of symmetric A and b, to be solved in for any damping and radius.

    Parameters
    ----------
    A
        Symmetric (n, n), an operator, matrix or function, as in :func:`cg`.
    b
        Torch or NumPy vector (n,), float32 or float64; −g for a model gᵀs + ½ sᵀA s.
    rtol
        Relative residual that a solve must reach.
    max_iterations
        Bound on the size of the basis: n where None, at most 500. Raise it if a solve ends with
        MAX_ITERATIONS.
    search
        Bound on the products spent, for a radius, on curvature that b does not excite (the hard
        case): as many as ``max_iterations`` leaves where None; 0 for plain GLTR, right where A is
        known to be positive semidefinite.
    generator
        Source of the search's random start; where None, a new one with a fixed seed.

    Returns
    -------
    Krylov
        An empty basis: no product is taken yet. Call ``.solve(damping=..., radius=...)``.

    Raises
    ------
    ValueError, TypeError
        As :func:`cg` does.

    Notes
    -----
    The ``x`` of a solve carries derivatives in b and A, at one more solve each, on the radius too:
    :mod:`natgrad.solvers.implicit`.

    A search takes some 8 √(‖A‖ / (λ_min + λ + μ)) products, fewer where it finds curvature sooner;
    it is not repeated for a smaller radius.

    Cost: one product for each vector of the basis. Memory: two vectors for each (the product is
    kept: A x is known for every x). Full reorthogonalisation: 8 n k operations for the k-th.

    Source: Gould, Lucidi, Roma & Toint, "Solving the trust-region subproblem using the Lanczos
    method", 1999. Differences: the basis stays orthogonal to rounding, so that no ghost eigenvalues
    arise; the residual is that of the kept products, not of the recurrence; the hard case is met by
    a second, random starting vector, whose Krylov space joins the first. How long to follow it:
    Kuczyński & Woźniakowski, "Estimating the largest eigenvalue by the power and Lanczos algorithms
    with a random start", 1992, theorem 4.2.

    Examples
    --------
    >>> krylov = lanczos(torch.diag(torch.tensor([1.0, -1.0])), torch.tensor([1.0, 1.0]))
    >>> [(s.status.name, s.products) for s in (krylov.solve(radius=r) for r in (1.0, 0.1, 5.0))]
    [('BOUNDARY', 2), ('BOUNDARY', 0), ('BOUNDARY', 0)]
    """
    problem = pose(A, b)
    size = len(problem.rhs)
    check_tolerances(rtol)
    limit = min(as_limit(max_iterations, size), size)
    if max_iterations is None:
        limit = min(limit, DEFAULT_LIMIT)
    search = search if search is None else as_count(search, "search")
    if generator is None:
        generator = torch.Generator(problem.rhs.device).manual_seed(SEED)

    def again(rhs: Tensor, damping: float) -> Solution[Tensor]:
        krylov = lanczos(A, rhs, rtol=rtol, max_iterations=max_iterations, search=search)
        return krylov.solve(damping=damping)

    return Krylov(problem, rtol, limit, limit if search is None else search, generator, again)
