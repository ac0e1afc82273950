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
from natgrad.solvers.scaling import dot, norm, power_of_two, unscale
from natgrad.solvers.solution import Iterate, Solution, Status, V
from natgrad.solvers.stopping import Stop

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
    precondition = problem.preconditioner(preconditioner) or _identity
    limit = as_limit(max_iterations, len(problem.rhs))
    check_tolerances(rtol, atol)
    check_damping(damping)
    check_every = as_count(check_every, "check_every")
    require(check_every >= 1, f"check_every must be at least 1, got {check_every}")
    growth = math.inf if iterate_growth is None else iterate_growth
    require(growth > 1, f"iterate_growth must be above 1, got {growth}")

    def iterate(rhs: Tensor, start: Tensor | None) -> Iteration:
        return _iterate(
            rhs, damping, start, precondition, rtol, atol, limit, stop, check_every, growth
        )

    return problem.solve(iterate, x0)


def _iterate(
    rhs: Tensor,
    damping: float,
    start: Tensor | None,
    precondition: Multiply,
    rtol: float,
    atol: float,
    limit: int,
    stop: Stop | None,
    check_every: int,
    growth: float,
) -> Iteration:
    # This solves (A/κ κ/α + λ/α) x̂ = b/β for powers of two α, β, κ: x = x̂ β/α, A x = κ/α β Âx̂.
    # α is the size of A + λ I, κ that of A: λ may exceed A by more than the dtype's range.
    b_scale = power_of_two(rhs)
    scale, A_scale = torch.ones_like(b_scale), torch.ones_like(b_scale)
    shift, ratio = torch.zeros_like(b_scale), torch.ones_like(b_scale)
    b_hat = rhs / b_scale
    x = torch.zeros_like(rhs)
    r = b_hat
    Ax = torch.zeros_like(rhs) if damping else None  # without damping A x is b − r
    products = 0
    kept_iterates: list[tuple[Tensor, Tensor]] = []
    eps = torch.finfo(rhs.dtype).eps

    def set_scales(first: Tensor, v: Tensor) -> None:
        """α and κ from the first product, A v."""
        nonlocal scale, A_scale, shift, ratio
        unit = power_of_two(v)
        scale = A_scale = power_of_two(first) / unit
        if damping:
            # The larger of two: their sum could leave the range.
            scale = torch.maximum(A_scale, power_of_two(A_scale.new_tensor(damping)))
            shift, ratio = (damping / scale.double()).to(scale), A_scale / scale

    def damped(product: Tensor, v: Tensor) -> Tensor:
        """(A + λ I) v, in units of α, from A v in units of κ."""
        return torch.addcmul(shift * v, product, ratio) if damping else product

    def solution(
        status: Status, iterations: int, direction: Tensor | None = None
    ) -> Solution[Tensor]:
        answer, kept = unscale(x, b_scale, scale)
        product = b_hat - r
        residual_norm = float(norm(r if damping else b_hat - product) * b_scale.double())
        product = (product if Ax is None else Ax * ratio) * b_scale
        finite = math.isfinite(residual_norm) and bool(kept & torch.isfinite(product).all())
        unit = b_scale.double() * (b_scale.double() / scale.double())
        iterates = tuple(
            Iterate(unscale(iterate, b_scale, scale)[0], unit * curvature)
            for iterate, curvature in kept_iterates
        )
        return Solution(
            answer, product, status if finite else Status.NONFINITE, iterations, products,
            residual_norm, direction, iterates=iterates,
        )  # fmt: skip

    def breakdown(product: Tensor) -> Status:
        """Why vᵀA v, or rᵀz for the preconditioner, is not positive."""
        return Status.NEGATIVE_CURVATURE if bool(torch.isfinite(product)) else Status.NONFINITE

    if not bool(torch.isfinite(rhs).all()):
        return solution(Status.NONFINITE, 0)
    if not bool(rhs.any()):
        return solution(Status.ZERO_RHS, 0)
    b_norm = norm(b_hat)
    tolerance = torch.maximum(rtol * b_norm, atol / b_scale.double())
    if start is not None:
        guess = start / b_scale
        product = yield guess
        products += 1
        if not bool(torch.isfinite(product).all()):
            return solution(Status.NONFINITE, 0)
        set_scales(product, guess)
        # x0 may be of any size: its image is of b's.
        x = guess * scale
        product = product / A_scale * scale
        image = damped(product, x)
        r = b_hat - image
        Ax = product if damping else None
        if bool(norm(r) <= tolerance - eps * (norm(image) + b_norm)):
            return solution(Status.CONVERGED, 0)
        if not bool(r.any()):  # solved, but beyond what rounding lets anyone certify
            return solution(Status.STAGNATED, 0)

    z = precondition(r)
    P_scale = power_of_two(z)
    z = z / P_scale
    p, rz = z, torch.dot(r, z)
    if not bool(rz > 0):
        return solution(breakdown(rz), 0)
    restarts, last_true_norm, claim = 0, b_norm, tolerance
    claim_squared = claim.square().to(rz)
    alive = torch.ones((), dtype=torch.bool, device=rhs.device)
    positive, claimed, stopped, curvature = alive, ~alive, ~alive, rz
    squares: list[tuple[Tensor, Tensor]] = []
    model_values: list[Tensor] = []
    next_kept = 1.0 if growth < math.inf else math.inf

    def keep(new: Tensor, old: Tensor) -> Tensor:
        # Between two read-backs a finished solve idles: nothing it found may change any more.
        return torch.where(alive, new, old) if check_every > 1 else new

    # All in tensors: one read-back every `check_every` iterations. Every call here costs as much as
    # a vector operation where n is small.
    for iteration in range(1, limit + 1):
        product = yield p
        if products == 0:
            set_scales(product, torch.ones_like(b_scale))  # p is of unit size
        product = product / A_scale
        Ap = damped(product, p)
        products += 1
        pp, ApAp = torch.dot(p, p), torch.dot(Ap, Ap)
        squares.append((ApAp, pp))
        curvature = keep(torch.dot(p, Ap), curvature)
        # False where Ap holds a NaN and, since ‖Ap‖ is infinite then, where it holds an infinity.
        positive = keep(curvature > eps * torch.sqrt(pp * ApAp), positive)
        alive = alive & positive
        before = x, r, p, Ax
        step = rz / curvature
        x = keep(torch.addcmul(x, p, step), x)
        r = keep(torch.addcmul(r, Ap, step, value=-1), r)
        if Ax is not None:
            Ax = keep(torch.addcmul(Ax, product, step), Ax)

        z = r if precondition is _identity else precondition(r) / P_scale
        rz_next = torch.dot(r, z)
        small = rz_next <= claim_squared if precondition is _identity else norm(r) <= claim
        claimed = keep(small, claimed)
        p = keep(torch.addcmul(z, p, rz_next / rz), p)
        rz = keep(rz_next, rz)
        if stop is not None:
            # φ(x) = ½ xᵀ(A + λI) x − bᵀx = −½ xᵀ(b + r), at no product.
            model_values.append(-0.5 * dot(x, b_hat + r))
            stopped = keep(stop(model_values), stopped)
            alive = alive & ~stopped
        alive = alive & ~claimed & (rz > 0)
        due = not iteration % check_every or iteration == limit
        ended = due and not bool(alive)
        if ended and not bool(positive):
            x, r, p, Ax = before
            status = breakdown(curvature)
            return solution(status, iteration, p if status is Status.NEGATIVE_CURVATURE else None)
        if iteration >= next_kept:
            xAx = dot(x, b_hat - r) if Ax is None else dot(x, Ax) * ratio.double()
            kept_iterates.append((x, xAx))
            next_kept = max(next_kept * growth, iteration + 1.0)
        if not ended:
            continue
        if not bool(claimed):
            if bool(stopped):
                return solution(Status.STOPPED, iteration)
            return solution(breakdown(rz), iteration)  # rᵀz <= 0 or NaN: the preconditioner's doing
        # Convergence is claimed: verify it on the true residual.
        product = (yield x) / A_scale
        r = b_hat - damped(product, x)
        Ax = product if damping else None
        products += 1
        true_norm = norm(r)
        # An idle p may be 0, and teaches nothing of ‖A‖.
        ratios = [torch.where(pp > 0, ApAp / pp, 0.0) for ApAp, pp in squares]
        A_norm = torch.stack(ratios).amax().sqrt()
        claim = tolerance - eps * (A_norm * norm(x) + b_norm)
        if bool(true_norm <= claim):
            return solution(Status.CONVERGED, iteration)
        progress = (claim > 0) & (true_norm < 0.5 * last_true_norm)
        if restarts == MAX_RESTARTS or not bool(progress):
            return solution(Status.STAGNATED, iteration)
        restarts, last_true_norm, claim_squared = restarts + 1, true_norm, claim.square().to(rz)
        z = precondition(r) / P_scale
        p, rz, alive = z, torch.dot(r, z), ~alive
    return solution(Status.MAX_ITERATIONS, limit)


def _identity(residual: Tensor) -> Tensor:
    return residual
