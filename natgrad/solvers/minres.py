"""Minimal residuals for symmetric A, indefinite or singular."""

from __future__ import annotations

import math
from collections.abc import Generator

import torch
from torch import Tensor

from natgrad.solvers.checks import as_limit, check_tolerances
from natgrad.solvers.linear_map import LinearMap, Multiply
from natgrad.solvers.problem import Iteration, pose
from natgrad.solvers.scaled import Scaled, breakdown
from natgrad.solvers.scaling import dot, norm, power_of_two
from natgrad.solvers.solution import Solution, Status, V

MAX_RESTARTS = 3


def minres(
    A: LinearMap,
    b: V,
    *,
    x0: V | None = None,
    preconditioner: LinearMap | None = None,
    rtol: float = 1e-5,
    atol: float = 0.0,
    max_iterations: int | None = None,
) -> Solution[V]:
    """Solve A x = b by minimal residuals, for symmetric A of any signature, also singular.

    Parameters
    ----------
    A
        Symmetric (n, n), an operator, matrix or function, as in :func:`cg`.
    b
        Right-hand side (n,), or (n, k) of k columns that share their products, as in :func:`cg`.
    x0
        Start, like b; zero where None.
    preconditioner
        Approximation of A⁻¹, symmetric positive definite even where A is not.
    rtol, atol
        The solve ends at ‖b − A x‖₂ <= max(rtol ‖b‖₂, atol).
    max_iterations
        Bound on the iterations; 10 n where None.

    Returns
    -------
    Solution
        Where A is singular and b in its range, CONVERGED; where b is not, LEAST_SQUARES, and x
        minimises the residual (in the norm of the preconditioner, if there is one). The two are
        told apart to √eps: an image of a residual below √eps ‖A‖ counts as zero. ``direction`` is
        one of nonpositive curvature if one was met; the solve goes on past it.

    Raises
    ------
    ValueError, TypeError
        As :func:`cg` does.

    Notes
    -----
    ``x`` carries derivatives in b and A where these require gradients, at one more solve each:
    :mod:`natgrad.solvers.implicit`.

    The residual falls at every iteration, in the preconditioner's norm.

    Cost: one product an iteration, one to verify the end, two for a claim of least squares, one
    for x0; memory of twelve vectors.

    Source: Paige & Saunders, "Solution of sparse indefinite systems of linear equations", 1975; the
    curvature test is that of Liu & Roosta, "MINRES: from negative curvature detection to
    monotonicity properties", 2022, lemma 3.1. Differences: scaled by powers of two; CONVERGED
    only on the true residual, with bounded restarts, as :func:`cg` does; the residual is carried as
    a vector, so that A x costs nothing and the stopping test is in the 2-norm with any
    preconditioner.

    Examples
    --------
    >>> minres(torch.diag(torch.tensor([1.0, -2.0])), torch.tensor([1.0, 1.0])).x
    tensor([ 1.0000, -0.5000])
    """
    problem = pose(A, b, columns=True)
    precondition = problem.preconditioner(preconditioner)
    limit = as_limit(max_iterations, len(problem.rhs))
    check_tolerances(rtol, atol)

    def iterate(rhs: Tensor, start: Tensor | None) -> Iteration:
        return _iterate(_State(Scaled.of(rhs, rtol, atol), precondition), start, limit)

    def again(rhs: Tensor) -> Solution[Tensor]:
        return minres(
            A, rhs, preconditioner=preconditioner, rtol=rtol, max_iterations=max_iterations
        )

    return problem.differentiable(problem.solve(iterate, x0), again)


def _iterate(state: _State, start: Tensor | None, limit: int) -> Iteration:
    status = state.b.trivial()
    if status is None and start is not None:
        guess = start / state.b.unit
        status = state.start_at(guess, (yield guess))
    for _ in range(MAX_RESTARTS + 1):
        if status is None:
            status = yield from _run(state, limit)
    return state.solution(status or Status.STAGNATED)


def _run(state: _State, limit: int) -> Generator[Tensor, Tensor, Status | None]:
    """One Lanczos process, from its first vector to the check of its end; None: restart."""
    last_norm = state.r_norm
    status = state.begin()
    while status is None and state.iterations < limit and not state.finished:
        status = state.advance((yield state.next_vector()))
    if status is None:
        status = state.verify((yield state.x))
    if status is None and bool(state.r_norm > state.b.tolerance) and state.patience < math.inf:
        flat_r = state.residual((yield state.flat_x))
        z = state.preconditioned(flat_r)
        status = state.verify_least_squares(flat_r, z, (yield z))
    if status is None and state.iterations == limit:
        return Status.MAX_ITERATIONS
    if status is None and not bool(state.r_norm < 0.5 * last_norm):
        return Status.STAGNATED
    return status


class _State:
    """x, r = b − A x and the Lanczos process that started at r, in scaled units.

    Its vectors are v in x's space and u = P v in the residual's, P⁻¹ the preconditioner; z = P⁻¹ u
    is not divided by its norm β yet.
    """

    def __init__(self, b: Scaled, precondition: Multiply | None) -> None:
        self.b, self.precondition = b, precondition
        self.scale = torch.ones_like(b.unit)
        self.x, self.r, self.r_norm = torch.zeros_like(b.rhs), b.rhs, b.norm
        self.products = self.iterations = 0
        self.direction: Tensor | None = None
        # Estimates of ‖A‖ from the products, and of the Lanczos matrix, which is preconditioned.
        self.A_norm = self.T_norm = torch.zeros_like(b.norm)

    def preconditioned(self, residual: Tensor) -> Tensor:
        return residual if self.precondition is None else self.precondition(residual)

    def residual(self, product: Tensor) -> Tensor:
        self.products += 1
        return self.b.rhs - product / self.scale

    def start_at(self, guess: Tensor, product: Tensor) -> Status | None:
        """Take x0, ``guess`` in units of β; the status where this ends the solve."""
        self.products += 1
        if not bool(torch.isfinite(product).all()):
            return Status.NONFINITE
        self.scale = power_of_two(product) / power_of_two(guess)
        self.x, self.r = guess * self.scale, self.b.rhs - product
        self.r_norm = norm(self.r)
        passed = bool(self.r_norm <= self.b.threshold(norm(product)))
        return Status.CONVERGED if passed else None

    def begin(self) -> Status | None:
        """Start the Lanczos process at r; the status where the preconditioner does not allow it."""
        self.u_before, self.u = torch.zeros_like(self.r), self.r
        self.z = self.preconditioned(self.u)
        squared = dot(self.u, self.z)
        if not bool(squared > 0):
            return breakdown(squared) if bool(self.r.any()) else Status.STAGNATED
        self.beta = self.phi_bar = squared.sqrt()
        zero = torch.zeros_like(self.beta)
        self.beta_before = self.delta_bar = self.epsilon = self.sin = zero
        self.cos = -torch.ones_like(zero)
        self.w = self.w_before = torch.zeros_like(self.r)
        self.flattest = torch.full_like(zero, math.sqrt(self.b.eps))
        self.flat_x, self.patience = self.x, math.inf
        self.finished = False
        return None

    def next_vector(self) -> Tensor:
        self.iterations += 1
        self.v = self.z / self.beta
        return self.v

    def advance(self, product: Tensor) -> Status | None:
        """One iteration from A v; the status where it breaks down."""
        product = product / self.scale
        if self.products == 0:
            self.scale = power_of_two(product) / power_of_two(self.v)
            product = product / self.scale
        self.products += 1
        if not bool(torch.isfinite(product).all()):
            return Status.NONFINITE
        self.A_norm = torch.maximum(self.A_norm, norm(product) / norm(self.v))
        y = product
        if bool(self.beta_before > 0):
            y = product - self.beta / self.beta_before * self.u_before
        alpha = dot(self.v, y)
        self.u_before, self.u = self.u, y - alpha / self.beta * self.u
        self.z = self.preconditioned(self.u)
        squared = dot(self.u, self.z)
        if not bool(squared >= 0):
            return breakdown(squared)
        last, self.beta_before, self.beta = self.beta_before, self.beta, squared.sqrt()
        above = torch.where(last > 0, self.beta_before, 0.0)
        row = alpha.square() + self.beta.square() + above.square()
        self.T_norm = torch.maximum(self.T_norm, row.sqrt())
        self.rotate(alpha)
        return None

    def rotate(self, alpha: Tensor) -> None:
        """Update the QR factorisation of the Lanczos matrix by a row, and x and r with it."""
        b, beta, cos, sin = self.b, self.beta, self.cos, self.sin
        # Apply the last rotation, then make the next one.
        delta = cos * self.delta_bar + sin * alpha
        gamma_bar = sin * self.delta_bar - cos * alpha
        epsilon, self.epsilon = self.epsilon, sin * beta
        self.delta_bar = -cos * beta
        if self.direction is None and bool(cos * gamma_bar >= 0):
            # rᵀA r = −φ̄² c γ̄ <= 0 at the last residual.
            self.direction = self.preconditioned(self.r)
        gamma = torch.hypot(gamma_bar, beta)
        self.keep_flattest(torch.hypot(gamma_bar, self.delta_bar))
        rank_left = bool(gamma > b.eps * self.T_norm)
        if self.iterations >= self.patience or not rank_left:
            self.finished = True
            return
        self.cos, self.sin = cos, sin = gamma_bar / gamma, beta / gamma
        phi, self.phi_bar = cos * self.phi_bar, sin * self.phi_bar
        w = (self.v - epsilon * self.w_before - delta * self.w) / gamma
        self.w_before, self.w = self.w, w
        self.x = self.x + phi * w
        along = self.phi_bar * cos / torch.where(beta > 0, beta, 1.0)
        self.r = sin.square() * self.r - along * self.u
        # beta = 0: the Krylov space has ended.
        passed = norm(self.r) <= b.tolerance
        self.finished = bool(passed | ~(beta > b.eps * self.T_norm))

    def keep_flattest(self, slope: Tensor) -> None:
        """Keep x where ‖A r‖ / ‖A‖ ‖r‖ of the last residual is tiny: x may solve least squares, and
        the next steps, along the null space, would destroy it."""
        flatness = torch.where(slope > 0, slope / self.T_norm, 0.0)
        if bool(flatness < self.flattest) and (
            self.patience == math.inf or norm(self.x) < 2 * norm(self.flat_x)
        ):
            self.flattest, self.flat_x = flatness, self.x
            self.patience = min(self.patience, 2 * self.iterations + 10)

    def verify(self, product: Tensor) -> Status | None:
        """Judge x by its true residual; the recursive one may be far off after many iterations."""
        self.r = self.residual(product)
        self.r_norm = norm(self.r)
        if not bool(torch.isfinite(self.r_norm)):
            return Status.NONFINITE
        passed = bool(self.r_norm <= self.b.threshold(self.A_norm * norm(self.x)))
        return Status.CONVERGED if passed else None

    def verify_least_squares(self, flat_r: Tensor, z: Tensor, product: Tensor) -> Status | None:
        """Least squares in the norm that was minimised: A M r = 0, M the preconditioner."""
        self.products += 1
        Az_norm, z_norm, b = norm(product / self.scale), norm(z), self.b
        # The rounding error of the residual counts against it, as it does for CONVERGED.
        error = b.eps * (self.A_norm * norm(self.flat_x) + b.norm) * z_norm / norm(flat_r)
        if not bool(Az_norm <= self.A_norm * (math.sqrt(b.eps) * z_norm - error)):
            return None
        self.x, self.r = self.flat_x, flat_r
        return Status.LEAST_SQUARES

    def solution(self, status: Status) -> Solution[Tensor]:
        b_hat = self.b.rhs
        Ax = b_hat - self.r
        account = self.iterations, self.products, float(norm(b_hat - Ax))
        found = Solution(self.x, Ax, status, *account, self.direction)
        return self.b.answer(found, self.scale)
