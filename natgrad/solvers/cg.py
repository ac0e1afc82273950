"""Conjugate gradients for symmetric positive definite A, with preconditioning and damping."""

from __future__ import annotations

import math

from torch import Tensor

from natgrad.solvers.cg_recurrence import Recurrence
from natgrad.solvers.checks import as_count, as_limit, check_damping, check_tolerances, require
from natgrad.solvers.linear_map import LinearMap
from natgrad.solvers.problem import Iteration, pose
from natgrad.solvers.scaled import Scaled
from natgrad.solvers.solution import Solution, Status, V
from natgrad.solvers.stopping import Stop, Stopping


def cg(
    A: LinearMap,
    b: V,
    *,
    damping: float = 0.0,
    x0: V | None = None,
    preconditioner: LinearMap | None = None,
    rtol: float = 1e-5,
    atol: float = 0.0,
    max_iterations: int | None = None,
    stop: Stop | None = None,
    check_every: int = 1,
    iterate_growth: float | None = None,
) -> Solution[V]:
    """Solve (A + λ I) x = b by conjugate gradients, λ the damping, for positive definite A + λ I.

    Parameters
    ----------
    A
        Symmetric (n, n), known by its products: anything with ``A @ v`` (an operator of this
        package, a torch or NumPy matrix, a SciPy operator), or a function v ↦ A v.
    b
        Torch or NumPy vector (n,), or matrix (n, k) of k right-hand sides, float32 or float64.
        Each column has its own steps, status and end, but they share their products: A V once a
        round.
    damping
        λ >= 0, in A's units. Raise it where A is singular or too ill-conditioned.
    x0
        Start, like b; zero where None. Give a nearby solution to save iterations.
    preconditioner
        Approximation of (A + λ I)⁻¹, symmetric positive definite, of any scale, given as A is. See
        :mod:`natgrad.solvers.preconditioners`.
    rtol, atol
        The solve ends at ‖b − (A + λ I) x‖₂ <= max(rtol ‖b‖₂, atol). ``atol`` has b's units.
    max_iterations
        Bound on the iterations; 10 n where None. Lower it for a truncated solve.
    stop
        Further rule that ends the solve, with the status STOPPED (:mod:`natgrad.solvers.stopping`).
    check_every
        Iterations between two read-backs of the outcome from the device. Raise it on a GPU: the
        same x, up to ``check_every`` − 1 idle products.
    iterate_growth
        Where given, > 1: keep iterates at distances that grow by this factor in
        ``Solution.iterates``, for a search along them (Martens 2010, section 4.6, has 1.3).

    Returns
    -------
    Solution
        In the kind, shape, dtype and device of b. ``Ax`` is A x without the damping, summed up
        beside x: as b − λ x it would lose its digits where λ is large, but xᵀA x is right to
        rounding for any λ. NaN, infinity, indefinite A and b = 0 end in a :class:`Status`.

    Raises
    ------
    ValueError, TypeError
        For wrong shapes, dtypes and settings; never for values of A and b.

    Notes
    -----
    ``x`` carries derivatives in b and A where these require gradients, at one more solve each:
    :mod:`natgrad.solvers.implicit`.

    Cost, for each column: one product an iteration, one more to verify a claim of convergence, one
    more for x0; memory of nine vectors. 4 dot products, 3 vector updates and one scaling an
    iteration; damping adds two vector updates and a vector, ``stop`` a dot product and an addition.

    Source: Hestenes & Stiefel 1952; Saad, *Iterative Methods for Sparse Linear Systems*, 2003,
    algorithm 9.1. Differences:

    - b, and A by its first product, are scaled by powers of two: with A and b (and the damping,
      as A) multiplied by any powers of two, x is the same bit for bit.
    - The recursive residual claims CONVERGED, the true one decides. The rounding error of computing
      it, eps (‖A‖ ‖x‖ + ‖b‖), counts against it; ‖A‖ is estimated by the products taken. A refused
      claim restarts from the true residual, at most 3 times, while it halves.
    - Curvature counts as nonpositive where pᵀAp <= eps ‖p‖ ‖Ap‖, a test free of scale. No positive
      definite matrix of condition below 1 / eps² fails it (Kantorovich's inequality).
    - The norms that decide convergence are summed in float64.

    Examples
    --------
    >>> import torch
    >>> cg(torch.diag(torch.tensor([1.0, 2.0, 4.0])), torch.ones(3)).x
    tensor([1.0000, 0.5000, 0.2500])
    """
    problem = pose(A, b, columns=True)
    precondition = problem.preconditioner(preconditioner)
    limit = as_limit(max_iterations, len(problem.rhs))
    check_tolerances(rtol, atol)
    check_damping(damping)
    check_every = as_count(check_every, "check_every")
    require(check_every >= 1, f"check_every must be at least 1, got {check_every}")
    growth = math.inf if iterate_growth is None else iterate_growth
    require(growth > 1, f"iterate_growth must be above 1, got {growth}")
    stopping = Stopping(limit, stop, check_every, growth)

    def iterate(rhs: Tensor, start: Tensor | None) -> Iteration:
        b = Scaled.of(rhs, rtol, atol)
        return _iterate(Recurrence(b, damping, precondition, stopping), start)

    def again(rhs: Tensor) -> Solution[Tensor]:
        return cg(
            A,
            rhs,
            damping=damping,
            preconditioner=preconditioner,
            rtol=rtol,
            max_iterations=max_iterations,
            check_every=check_every,
        )

    return problem.differentiable(problem.solve(iterate, x0), again)


def _iterate(state: Recurrence, start: Tensor | None) -> Iteration:
    status = state.b.trivial()
    if status is None and start is not None:
        guess = start / state.b.unit
        status = state.start_at(guess, (yield guess))
    if status is None:
        status = state.begin()
    if status is not None:
        return state.solution(status, 0)
    limit, check_every = state.stopping.limit, state.stopping.check_every
    for iteration in range(1, limit + 1):
        state.advance((yield state.p))
        due = not iteration % check_every or iteration == limit
        ended = due and not bool(state.alive)
        if ended and not bool(state.positive):
            return state.without_last_step(iteration)
        state.keep_iterate(iteration)
        if ended:
            status = state.verify((yield state.x)) if bool(state.claimed) else state.why_ended()
            if status is not None:
                return state.solution(status, iteration)
    return state.solution(Status.MAX_ITERATIONS, limit)
