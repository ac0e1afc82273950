"""Minimal residuals for symmetric A, indefinite or singular."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from natgrad.solvers.linear_map import LinearMap, Multiply
from natgrad.solvers.problem import Iteration, as_limit, check_tolerances, pose
from natgrad.solvers.scaling import dot, norm, power_of_two, unscale
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
    """Solve A x = b to ‖b − A x‖₂ <= max(rtol ‖b‖₂, atol) for symmetric A of any signature.

    Arguments, kinds, columns and errors are those of :func:`cg`; the preconditioner must be
    positive definite, A need not. The residual falls at every iteration, in the preconditioner's
    norm.
    Where A is singular and b in its range this solves; where b is not, the status is LEAST_SQUARES,
    and x minimises the residual (in the norm of the preconditioner, if there is one). The two are
    told apart to √eps: what A makes of a residual below √eps ‖A‖ counts as nothing. A
    ``direction`` of nonpositive curvature is returned if one was met; the solve goes on past it.

    Cost: one product an iteration, one to verify the end, two for a claim of least squares, one
    for x0; memory of twelve vectors.

    Source: Paige & Saunders, "Solution of sparse indefinite systems of linear equations", 1975; the
    curvature test is that of Liu & Roosta, "MINRES: from negative curvature detection to
    monotonicity properties", 2022, lemma 3.1. How it differs: scaled by powers of two, CONVERGED
    only on the true residual with bounded restarts, as :func:`cg` does; the residual is carried as
    a vector, so that A x costs nothing and the stopping test is in the 2-norm whatever the
    preconditioner.

    >>> minres(torch.diag(torch.tensor([1.0, -2.0])), torch.tensor([1.0, 1.0])).x
    tensor([ 1.0000, -0.5000])
    """
    problem = pose(A, b, columns=True)
    precondition = problem.preconditioner(preconditioner)
    limit = as_limit(max_iterations, len(problem.rhs))
    check_tolerances(rtol, atol)
    return problem.solve(
        lambda rhs, start: _iterate(rhs, start, precondition, rtol, atol, limit), x0
    )


def _iterate(
    rhs: Tensor,
    start: Tensor | None,
    precondition: Multiply | None,
    rtol: float,
    atol: float,
    limit: int,
) -> Iteration:
    b_scale = power_of_two(rhs)
    A_scale = torch.ones_like(b_scale)
    b_hat = rhs / b_scale
    x, r = torch.zeros_like(rhs), b_hat
    products = iterations = 0
    direction: Tensor | None = None
    eps = torch.finfo(rhs.dtype).eps
    b_norm = norm(b_hat)
    # ‖A‖ as the products show it, and as the Lanczos matrix does, which is preconditioned.
    A_norm = T_norm = torch.zeros_like(b_norm)
    tolerance = torch.maximum(rtol * b_norm, atol / b_scale.double())

    def solution(status: Status) -> Solution[Tensor]:
        answer, kept = unscale(x, b_scale, A_scale)
        product = b_hat - r
        residual_norm = float(norm(b_hat - product) * b_scale.double())
        Ax = product * b_scale
        if not math.isfinite(residual_norm) or not bool(kept & torch.isfinite(Ax).all()):
            status = Status.NONFINITE
        return Solution(answer, Ax, status, iterations, products, residual_norm, direction)

    if not bool(torch.isfinite(rhs).all()):
        return solution(Status.NONFINITE)
    if not bool(rhs.any()):
        return solution(Status.ZERO_RHS)
    if start is not None:
        guess = start / b_scale
        Ax = yield guess
        products += 1
        if not bool(torch.isfinite(Ax).all()):
            return solution(Status.NONFINITE)
        A_scale = power_of_two(Ax) / power_of_two(guess)
        x, r = guess * A_scale, b_hat - Ax
        if bool(norm(r) <= tolerance - eps * (norm(Ax) + b_norm)):
            return solution(Status.CONVERGED)

    last_true_norm = norm(r)
    for restart in range(MAX_RESTARTS + 1):
        # Lanczos vectors v in x's space, u in the residual's: u = P v, the same without P.
        u_before, u = torch.zeros_like(r), r
        z = u if precondition is None else precondition(u)
        squared = dot(u, z)
        if not bool(squared > 0):
            finite = bool(torch.isfinite(squared))
            status = Status.NEGATIVE_CURVATURE if finite else Status.NONFINITE
            return solution(status if bool(r.any()) else Status.STAGNATED)
        beta = squared.sqrt()
        beta_before, phi_bar = torch.zeros_like(beta), beta
        delta_bar, epsilon = torch.zeros_like(beta), torch.zeros_like(beta)
        cos, sin = -torch.ones_like(beta), torch.zeros_like(beta)
        w = w_before = torch.zeros_like(r)
        flattest, flat_x, patience = torch.full_like(beta, math.sqrt(eps)), x, math.inf
        finished = False
        while iterations < limit and not finished:
            iterations += 1
            v = z / beta
            Av = (yield v) / A_scale
            if products == 0:
                first_scale = power_of_two(Av) / power_of_two(v)
                A_scale, Av = first_scale, Av / first_scale
            products += 1
            if not bool(torch.isfinite(Av).all()):
                return solution(Status.NONFINITE)
            A_norm = torch.maximum(A_norm, norm(Av) / norm(v))
            y = Av if not bool(beta_before > 0) else Av - beta / beta_before * u_before
            alpha = dot(v, y)
            u_before, u = u, y - alpha / beta * u
            z = u if precondition is None else precondition(u)
            squared = dot(u, z)
            if not bool(squared >= 0):
                finite = bool(torch.isfinite(squared))
                return solution(Status.NEGATIVE_CURVATURE if finite else Status.NONFINITE)
            last, beta_before, beta = beta_before, beta, squared.sqrt()
            row = alpha.square() + beta.square() + torch.where(last > 0, beta_before, 0.0).square()
            T_norm = torch.maximum(T_norm, row.sqrt())
            # Apply the last rotation, then make the next one.
            delta = cos * delta_bar + sin * alpha
            gamma_bar = sin * delta_bar - cos * alpha
            epsilon_before, epsilon = epsilon, sin * beta
            delta_bar = -cos * beta
            if direction is None and bool(cos * gamma_bar >= 0):
                # rᵀA r = −φ̄² c γ̄ <= 0 at the last residual.
                direction = r if precondition is None else precondition(r)
            gamma = torch.hypot(gamma_bar, beta)
            # ‖A r‖ / ‖A‖ ‖r‖ of the last residual. Where it is tiny x may solve least squares,
            # of which the next steps, along the null space, would make nothing: keep it, and see.
            slope = torch.hypot(gamma_bar, delta_bar)
            flatness = torch.where(slope > 0, slope / T_norm, 0.0)
            if bool(flatness < flattest) and (patience == math.inf or norm(x) < 2 * norm(flat_x)):
                flattest, flat_x, patience = flatness, x, min(patience, 2 * iterations + 10)
            if iterations >= patience or not bool(gamma > eps * T_norm):
                break
            cos, sin = gamma_bar / gamma, beta / gamma
            phi, phi_bar = cos * phi_bar, sin * phi_bar
            w_before, w = w, (v - epsilon_before * w_before - delta * w) / gamma
            x = x + phi * w
            r = sin.square() * r - phi_bar * cos / torch.where(beta > 0, beta, 1.0) * u
            r_norm = norm(r)
            # beta = 0: the Krylov space has ended.
            finished = bool((r_norm <= tolerance) | ~(beta > eps * T_norm))
        # Verify on the true residual: where Lanczos lost its way, the recursive one is far off.
        r = b_hat - (yield x) / A_scale
        products += 1
        true_norm = norm(r)
        if not bool(torch.isfinite(true_norm)):
            return solution(Status.NONFINITE)
        claim = tolerance - eps * (A_norm * norm(x) + b_norm)
        if bool(true_norm <= claim):
            return solution(Status.CONVERGED)
        if bool(true_norm > tolerance) and patience < math.inf:
            # Least squares in the norm that was minimised: A M r = 0, M the preconditioner.
            flat_r = b_hat - (yield flat_x) / A_scale
            z = flat_r if precondition is None else precondition(flat_r)
            Az = (yield z) / A_scale
            products += 2
            # The rounding error of the residual counts against it, as it does for CONVERGED.
            error = eps * (A_norm * norm(flat_x) + b_norm) * norm(z) / norm(flat_r)
            if bool(norm(Az) <= A_norm * (math.sqrt(eps) * norm(z) - error)):
                x, r = flat_x, flat_r
                return solution(Status.LEAST_SQUARES)
        if iterations == limit:
            return solution(Status.MAX_ITERATIONS)
        if restart == MAX_RESTARTS or not bool(true_norm < 0.5 * last_true_norm):
            return solution(Status.STAGNATED)
        last_true_norm = true_norm
    raise AssertionError("the last restart returns")
