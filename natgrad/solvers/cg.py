"""Conjugate gradients for symmetric positive definite A, preconditioned, scale-free and honest."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from natgrad.solvers.linear_map import LinearMap, Multiply
from natgrad.solvers.problem import (
    Iteration,
    as_count,
    as_limit,
    check_damping,
    check_tolerances,
    pose,
    require,
)
from natgrad.solvers.scaled import Scaled, breakdown
from natgrad.solvers.scaling import dot, norm, power_of_two
from natgrad.solvers.solution import Iterate, Solution, Status, V
from natgrad.solvers.stopping import Stop, Stopping

MAX_RESTARTS = 3


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
        return _iterate(_State(Scaled.of(rhs, stopping), damping, precondition, stopping), start)

    return problem.solve(iterate, x0)


def _iterate(state: _State, start: Tensor | None) -> Iteration:
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


class _State:
    """x, r = b − (A + λ I) x and the direction p, in scaled units.

    The system is (κ/α Â + λ/α I) x̂ = b̂ with A = κ Â, b = β b̂ and x = x̂ β/α, for powers of two
    α, β, κ. α is the size of A + λ I, κ that of A: λ may exceed A by more than the dtype's range.
    """

    p: Tensor
    P_scale: Tensor  # the power of two of the preconditioner
    rz: Tensor  # rᵀz, z the preconditioned residual
    curvature: Tensor  # pᵀ(A + λ I) p

    def __init__(
        self, b: Scaled, damping: float, precondition: Multiply | None, stopping: Stopping
    ) -> None:
        self.b, self.damping, self.precondition, self.stopping = b, damping, precondition, stopping
        self.scale = self.A_scale = self.ratio = torch.ones_like(b.unit)  # α, κ, κ/α
        self.shift = torch.zeros_like(b.unit)  # λ/α
        self.x, self.r = torch.zeros_like(b.rhs), b.rhs
        self.Ax = torch.zeros_like(b.rhs) if damping else None  # without damping A x is b − r
        self.products = self.restarts = 0
        self.last_true_norm, self.claim = b.norm, b.tolerance
        self.squares: list[tuple[Tensor, Tensor]] = []  # ‖A p‖² and ‖p‖² of every direction
        self.model_values: list[Tensor] = []
        self.iterates: list[Iterate[Tensor]] = []
        self.next_kept = 1.0 if stopping.growth < math.inf else math.inf

    def set_scales(self, product: Tensor, unit: Tensor) -> None:
        """α and κ from the first product, with a vector of size ``unit``."""
        self.scale = self.A_scale = power_of_two(product) / unit
        if self.damping:
            # The larger of two: their sum could leave the range.
            damping = power_of_two(self.A_scale.new_tensor(self.damping))
            self.scale = torch.maximum(self.A_scale, damping)
            self.shift = (self.damping / self.scale.double()).to(self.scale)
            self.ratio = self.A_scale / self.scale

    def damped(self, product: Tensor, v: Tensor) -> Tensor:
        """(A + λ I) v, in units of α, from A v in units of κ."""
        if not self.damping:
            return product
        return torch.addcmul(self.shift * v, product, self.ratio)

    def start_at(self, guess: Tensor, product: Tensor) -> Status | None:
        """Take x0, ``guess`` in units of β; the status where this ends the solve."""
        self.products += 1
        if not bool(torch.isfinite(product).all()):
            return Status.NONFINITE
        self.set_scales(product, power_of_two(guess))
        # x0 may be of any size: its image is of b's.
        self.x = guess * self.scale
        product = product / self.A_scale * self.scale
        image = self.damped(product, self.x)
        self.r = self.b.rhs - image
        self.Ax = product if self.damping else None
        if bool(norm(self.r) <= self.b.threshold(norm(image))):
            return Status.CONVERGED
        # A zero residual above the threshold is solved, but beyond what rounding lets us certify.
        return None if bool(self.r.any()) else Status.STAGNATED

    def preconditioned(self) -> Tensor:
        return self.r if self.precondition is None else self.precondition(self.r)

    def begin(self) -> Status | None:
        """Set the first direction; the status where the preconditioner gives none."""
        z = self.preconditioned()
        self.P_scale = power_of_two(z)
        self.p = z / self.P_scale
        self.rz = self.curvature = torch.dot(self.r, self.p)
        if not bool(self.rz > 0):
            return breakdown(self.rz)
        self.claim_squared = self.claim.square().to(self.rz)
        self.alive = torch.ones((), dtype=torch.bool, device=self.r.device)
        self.positive, self.claimed, self.stopped = self.alive, ~self.alive, ~self.alive
        return None

    def kept(self, new: Tensor, old: Tensor) -> Tensor:
        # Between two read-backs a finished solve idles: nothing it found may change any more.
        return torch.where(self.alive, new, old) if self.stopping.check_every > 1 else new

    def advance(self, product: Tensor) -> None:
        """One iteration from A p, without a read-back from the device.

        Where n is small every call here costs as much as a vector operation.
        """
        b, kept, p = self.b, self.kept, self.p
        if self.products == 0:
            self.set_scales(product, torch.ones_like(b.unit))  # p is of unit size
        self.products += 1
        product = product / self.A_scale
        Ap = self.damped(product, p)
        pp, ApAp = torch.dot(p, p), torch.dot(Ap, Ap)
        self.squares.append((ApAp, pp))
        self.curvature = kept(torch.dot(p, Ap), self.curvature)
        # False where Ap holds a NaN and, since ‖Ap‖ is infinite then, where it holds an infinity.
        self.positive = kept(self.curvature > b.eps * torch.sqrt(pp * ApAp), self.positive)
        self.alive = self.alive & self.positive
        self.before = self.x, self.r, p, self.Ax
        step = self.rz / self.curvature
        self.x = kept(torch.addcmul(self.x, p, step), self.x)
        self.r = r = kept(torch.addcmul(self.r, Ap, step, value=-1), self.r)
        if self.Ax is not None:
            self.Ax = kept(torch.addcmul(self.Ax, product, step), self.Ax)
        z = r if self.precondition is None else self.precondition(r) / self.P_scale
        rz = torch.dot(r, z)
        small = rz <= self.claim_squared if self.precondition is None else norm(r) <= self.claim
        self.claimed = kept(small, self.claimed)
        self.p = kept(torch.addcmul(z, p, rz / self.rz), p)
        self.rz = kept(rz, self.rz)
        if self.stopping.stop is not None:
            # φ(x) = ½ xᵀ(A + λI) x − bᵀx = −½ xᵀ(b + r), at no product.
            self.model_values.append(-0.5 * dot(self.x, b.rhs + r))
            self.stopped = kept(self.stopping.stop(self.model_values), self.stopped)
            self.alive = self.alive & ~self.stopped
        self.alive = self.alive & ~self.claimed & (self.rz > 0)

    def keep_iterate(self, iteration: int) -> None:
        if iteration < self.next_kept:
            return
        x, Ax = self.x, self.Ax
        xAx = dot(x, self.b.rhs - self.r) if Ax is None else dot(x, Ax) * self.ratio.double()
        self.iterates.append(Iterate(x, xAx))
        self.next_kept = max(self.next_kept * self.stopping.growth, iteration + 1.0)

    def why_ended(self) -> Status:
        """The status of a solve that ended without a claim: by the rule, or rᵀz <= 0 or NaN."""
        return Status.STOPPED if bool(self.stopped) else breakdown(self.rz)

    def verify(self, product: Tensor) -> Status | None:
        """Judge a claim of convergence by the true residual; None where the solve restarts."""
        self.products += 1
        product = product / self.A_scale
        self.r = self.b.rhs - self.damped(product, self.x)
        self.Ax = product if self.damping else None
        true_norm = norm(self.r)
        # An idle p may be 0, and teaches nothing of ‖A‖.
        ratios = [torch.where(pp > 0, ApAp / pp, 0.0) for ApAp, pp in self.squares]
        A_norm = torch.stack(ratios).amax().sqrt()
        self.claim = self.b.threshold(A_norm * norm(self.x))
        if bool(true_norm <= self.claim):
            return Status.CONVERGED
        progress = (self.claim > 0) & (true_norm < 0.5 * self.last_true_norm)
        if self.restarts == MAX_RESTARTS or not bool(progress):
            return Status.STAGNATED
        self.restarts, self.last_true_norm = self.restarts + 1, true_norm
        self.claim_squared = self.claim.square().to(self.rz)
        self.p = self.preconditioned() / self.P_scale
        self.rz, self.alive = torch.dot(self.r, self.p), ~self.alive
        return None

    def without_last_step(self, iteration: int) -> Solution[Tensor]:
        """The solution where curvature along p is not positive: the step is taken back."""
        self.x, self.r, p, self.Ax = self.before
        status = breakdown(self.curvature)
        direction = p if status is Status.NEGATIVE_CURVATURE else None
        return self.solution(status, iteration, direction)

    def solution(
        self, status: Status, iterations: int, direction: Tensor | None = None
    ) -> Solution[Tensor]:
        b_hat, r = self.b.rhs, self.r
        Ax = b_hat - r if self.Ax is None else self.Ax * self.ratio
        residual_norm = float(norm(r if self.damping else b_hat - Ax))
        found = Solution(
            self.x,
            Ax,
            status,
            iterations,
            self.products,
            residual_norm,
            direction,
            iterates=tuple(self.iterates),
        )
        return self.b.answer(found, self.scale)
