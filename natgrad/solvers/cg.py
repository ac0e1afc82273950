"""Conjugate gradients for symmetric positive definite A, preconditioned, scale-free and honest."""

from __future__ import annotations

import math

from torch import Tensor

from natgrad.solvers.cg_recurrence import Recurrence
from natgrad.solvers.linear_map import LinearMap
from natgrad.solvers.problem import (
    Iteration,
    as_count,
    as_limit,
    check_damping,
    check_tolerances,
    pose,
    require,
)
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
    """Solve (A + λ I) x = b, λ the ``damping``, to ‖b − (A + λ I) x‖₂ <= max(rtol ‖b‖₂, atol), from
    products A v alone.

    ``A`` is anything with ``A @ v`` (our operators, torch or NumPy matrices, SciPy operators) or a
    function v ↦ A v. ``b`` is a torch or NumPy vector (n,), or a matrix (n, k) of k right-hand
    sides, of float32 or float64; the answer comes back in kind. The columns of a matrix are solved
    apart, each with its own steps, status and end, but share their products: A V once a round.
    ``Solution.Ax`` is A x without the damping, summed up beside x and not b − λ x, in which A x
    would drown where λ is large: xᵀA x is right to rounding for any λ.
    ``preconditioner`` applies an approximation of (A + λ I)⁻¹, symmetric positive definite, of any
    scale.
    ``max_iterations`` defaults to 10 n. ``stop`` ends the solve by a further rule
    (:mod:`natgrad.solvers.stopping`), with the status STOPPED. ``check_every=k`` reads the outcome
    back from the device every k iterations only: the same x, up to k − 1 idle products.
    ``iterate_growth=γ`` keeps iterates at distances that grow by γ in ``Solution.iterates``, for a
    search along them (Martens 2010, section 4.6, has γ = 1.3).

    Never raises on values: NaN, infinity, indefinite A and b = 0 end in a :class:`Status`. Raises
    ``ValueError`` or ``TypeError`` for wrong shapes, dtypes and settings.

    Cost, for each column: one product an iteration, one more to verify a claim of convergence, one
    more for x0; memory of nine vectors. 4 dot products, 3 vector updates and one scaling an
    iteration; damping adds two vector updates and a vector, ``stop`` a dot product and an addition.

    Source: Hestenes & Stiefel 1952; Saad, *Iterative Methods for Sparse Linear Systems*, 2003,
    algorithm 9.1. How it differs from them:

    - b, and A by its first product, are scaled by powers of two: with A and b (and the damping,
      as A) multiplied by any powers of two, x is the same bit for bit.
    - CONVERGED is claimed by the recursive residual but granted by the true one, to which the
      rounding error of computing it is added: eps (‖A‖ ‖x‖ + ‖b‖), ‖A‖ estimated by the products
      taken. A refused claim restarts from the true residual, at most 3 times, while it halves.
    - Curvature counts as nonpositive where pᵀAp <= eps ‖p‖ ‖Ap‖, a test free of scale. No positive
      definite matrix of condition below 1 / eps² fails it (Kantorovich's inequality).
    - The norms that grant convergence are summed in float64.

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
    stopping = Stopping(rtol, atol, limit, stop, check_every, growth)

    def iterate(rhs: Tensor, start: Tensor | None) -> Iteration:
        return _iterate(
            Recurrence(Scaled.of(rhs, stopping), damping, precondition, stopping), start
        )

    return problem.solve(iterate, x0)


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
