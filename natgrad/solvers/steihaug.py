"""Steihaug-Toint conjugate gradients: a quadratic model inside a trust region."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor

from natgrad.solvers.linear_map import LinearMap, Multiply
from natgrad.solvers.problem import as_kind, as_limit, check_tolerances, pose, require
from natgrad.solvers.scaled import Scaled, breakdown
from natgrad.solvers.scaling import as_float, dot, norm, power_of_two, quotient
from natgrad.solvers.solution import Solution, Status, V
from natgrad.solvers.stopping import Stopping

# Of a radius beside a model of unit size, as a power of two.
LIMIT = 500


def steihaug(
    A: LinearMap,
    g: V,
    radius: float,
    *,
    preconditioner: LinearMap | None = None,
    rtol: float = 1e-5,
    atol: float = 0.0,
    max_iterations: int | None = None,
) -> Solution[V]:
    """Minimise the model gᵀs + ½ sᵀA s over ‖s‖_P <= radius, approximately, for symmetric A.

    Follows conjugate gradients from 0 until the model's gradient is small, ‖g + A s‖₂ <=
    max(rtol ‖g‖₂, atol), or the path meets the boundary, or curvature along it is not positive;
    then it goes on to the boundary. ‖s‖ grows along the path, and the model falls at least as far
    as at the Cauchy point. With the status

    - CONVERGED, s lies inside and the *true* gradient A s + g, which one product verifies, passed;
    - BOUNDARY and NEGATIVE_CURVATURE, ‖s‖_P = radius (the latter with ``direction``, and inside
      without one where the preconditioner is not positive);
    - MAX_ITERATIONS, STAGNATED, NONFINITE, s is the last sound iterate, inside.

    P is the identity, or the inverse of ``preconditioner``, which must be symmetric positive
    definite; its scale matters here, since it measures the radius. The model's decrease is
    −(g @ s + s @ As / 2), at no further product. To try smaller radii after a rejection at no
    product, keep a :class:`SteihaugPath`. For indefinite A, :func:`lanczos` finds the minimiser
    itself.

    Raises ``ValueError`` for a radius that is not positive and finite, and as :func:`cg` does.

    Cost: one product an iteration, one to verify convergence; memory of nine vectors, two more with
    a preconditioner.

    Source: Steihaug 1983; Conn, Gould & Toint, *Trust-Region Methods*, 2000, algorithm 7.5.1. How
    it differs from them: scaled by powers of two as :func:`cg` is; the norms are those of the
    vectors, P s carried beside s, in float64, not of the recurrences, which drift; the root for the
    boundary is taken in the form without cancellation; without a preconditioner, a step that
    rounding put outside is scaled back.

    >>> s = steihaug(torch.diag(torch.tensor([1.0, -1.0])), torch.tensor([1.0, 1.0]), 2.0)
    >>> s.status.name, round(float(s.x.norm()), 6)
    ('NEGATIVE_CURVATURE', 2.0)
    """
    path = SteihaugPath(
        A, g, preconditioner=preconditioner, rtol=rtol, atol=atol, max_iterations=max_iterations
    )
    return path._follow(radius, path._legs)


class SteihaugPath(Generic[V]):
    """The path of :func:`steihaug` for one A and g, kept: ``solve(radius)`` for any radius.

    A radius at most as large as one tried before costs no product, a larger one goes on where the
    path had ended. Same arguments and errors as :func:`steihaug`. Memory: four vectors an
    iteration.

    >>> path = SteihaugPath(torch.diag(torch.tensor([1.0, 2.0])), torch.tensor([3.0, 4.0]))
    >>> [(radius, path.solve(radius).products) for radius in (10.0, 1.0, 0.1)]
    [(10.0, 3), (1.0, 0), (0.1, 0)]
    """

    def __init__(
        self,
        A: LinearMap,
        g: V,
        *,
        preconditioner: LinearMap | None = None,
        rtol: float = 1e-5,
        atol: float = 0.0,
        max_iterations: int | None = None,
    ) -> None:
        problem = pose(A, g, name="g")
        precondition = problem.preconditioner(preconditioner)
        limit = as_limit(max_iterations, len(problem.rhs))
        check_tolerances(rtol, atol)
        self._g = Scaled.of(problem.rhs, Stopping(rtol, atol, limit))
        self._in_numpy = problem.in_numpy
        self._walk = _Walk(self._g, problem.multiply, precondition, limit)
        # Its generator refers to the walk alone: a cycle with this object would keep A until gc.
        self._legs = self._walk.legs()
        self._kept: list[_Leg | _End] = []

    def solve(self, radius: float) -> Solution[V]:
        """The step for this radius; ``products`` counts the products that this call took."""
        return self._follow(radius, self._replay())

    def _replay(self) -> Iterator[_Leg | _End]:
        yield from self._kept
        for leg in self._legs:
            self._kept.append(leg)
            yield leg

    def _follow(self, radius: float, legs: Iterator[_Leg | _End]) -> Solution[V]:
        require(
            math.isfinite(radius) and radius > 0,
            f"radius must be positive and finite, got {radius}; without one, use cg",
        )
        before = self._walk.products
        for iterations, leg in enumerate(legs):
            if isinstance(leg, _End):
                return self._answer(leg, iterations, before, self._walk.A_scale)
            bound = leg.pPp.new_tensor(self._bound(radius))
            if leg.ends_inside(bound):
                continue
            end = leg.cut(bound, euclidean=self._walk.precondition is None)
            units = torch.ones_like(bound), torch.full_like(bound, radius)
            return self._answer(end, iterations + 1, before, *units)
        raise AssertionError("a path ends with its end")

    def _bound(self, radius: float) -> float:
        """The radius in the model's units; within a range that no path of unit size leaves, since
        the answer is taken in units of the radius itself."""
        scales = float(self._walk.A_scale), float(self._g.unit)
        bound = as_float(*quotient((radius, scales[0]), (scales[1],)))
        return min(max(bound, 2.0**-LIMIT), 2.0**LIMIT)

    def _answer(
        self, end: _End, iterations: int, before: int, scale: Tensor, unit: Tensor | None = None
    ) -> Solution[V]:
        g, products = self._g.rhs, self._walk.products - before
        As = end.r - g
        residual_norm = float(norm(g + As))
        found = Solution(end.s, As, end.status, iterations, products, residual_norm, end.direction)
        return as_kind(self._g.answer(found, scale, unit), in_numpy=self._in_numpy)


class _Walk:
    """Conjugate gradients for a model of unit size, leg by leg; it counts the products taken."""

    def __init__(
        self, g: Scaled, multiply: Multiply, precondition: Multiply | None, limit: int
    ) -> None:
        self.g, self.multiply, self.precondition, self.limit = g, multiply, precondition, limit
        self.A_scale = torch.ones_like(g.unit)
        self.products = 0

    def legs(self) -> Iterator[_Leg | _End]:
        r = self.g.rhs
        s = torch.zeros_like(r)
        status = self.g.trivial()
        if status is not None:
            yield _End(s, r, status)
            return
        A_norm = torch.zeros_like(self.g.norm)
        z = r if self.precondition is None else self.precondition(r)
        P_scale = power_of_two(z).double()
        z = z / P_scale
        p, rz = -z, dot(r, z)
        # P s and P p in units of P_scale, known since P z = r. The recurrences of algorithm 7.5.1
        # for the norms alone rest on an orthogonality that rounding takes.
        Ps, Pp = s, -r
        for _ in range(self.limit):
            sPs, sPp, pPp = dot(s, Ps) / P_scale, dot(s, Pp) / P_scale, dot(p, Pp) / P_scale
            # Otherwise, and that is the preconditioner's doing, there is no direction to follow.
            if not bool((rz > 0) & (pPp > 0)):
                yield _End(s, r, breakdown(rz))
                return
            Ap = self.multiply(p)
            self.products += 1
            if self.products == 1:
                self.A_scale = power_of_two(Ap)  # p is of unit size
            Ap = Ap / self.A_scale
            curvature, Ap_norm, p_norm = dot(p, Ap), norm(Ap), norm(p)
            A_norm = torch.maximum(A_norm, Ap_norm / p_norm)
            alpha = rz / curvature
            if not bool(torch.isfinite(Ap_norm)):
                yield _End(s, r, Status.NONFINITE)
                return
            positive = bool(curvature > self.g.eps * p_norm * Ap_norm)
            yield _Leg(s, r, p, Ap, alpha, sPs, sPp, pPp, positive)
            if not positive:
                return
            s, r = s + alpha * p, r + alpha * Ap
            Ps = s if self.precondition is None else Ps + alpha * Pp
            if bool(norm(r) <= self.g.tolerance):
                r = self.g.rhs + self.multiply(s) / self.A_scale
                self.products += 1
                passed = bool(norm(r) <= self.g.threshold(A_norm * norm(s)))
                yield _End(s, r, Status.CONVERGED if passed else Status.STAGNATED)
                return
            z = r if self.precondition is None else self.precondition(r) / P_scale
            rz_next = dot(r, z)
            beta = rz_next / rz
            p, rz = beta * p - z, rz_next
            Pp = p if self.precondition is None else beta * Pp - r
        yield _End(s, r, Status.MAX_ITERATIONS)


@dataclass(frozen=True)
class _Leg:
    """From s along p, α of it; r = g + A s; ‖s‖², sᵀp and ‖p‖² in the norm of the radius.

    A leg of nonpositive curvature has no end of its own: it goes to the boundary.
    """

    s: Tensor
    r: Tensor
    p: Tensor
    Ap: Tensor
    alpha: Tensor
    sPs: Tensor
    sPp: Tensor
    pPp: Tensor
    positive: bool

    def ends_inside(self, radius: Tensor) -> bool:
        squared = self.sPs + self.alpha * (2 * self.sPp + self.alpha * self.pPp)
        return self.positive and bool(squared.sqrt() < radius)

    def cut(self, radius: Tensor, *, euclidean: bool) -> _End:
        """The end on the boundary, with s in units of the radius: where the model is of unit size,
        the radius may be beyond the range of the dtype."""
        tau = self.to_boundary(radius)
        s = (self.s.double() + tau * self.p.double()) / radius
        if euclidean:
            s = s / torch.clamp(norm(s), min=1.0)
        r = self.r + tau * self.Ap
        if self.positive:
            return _End(s, r, Status.BOUNDARY)
        return _End(s, r, Status.NEGATIVE_CURVATURE, self.p)

    def to_boundary(self, radius: Tensor) -> Tensor:
        """The positive root τ of ‖s + τ p‖ = radius, in the form that does not cancel."""
        # For s in units of the radius and p in units of ‖p‖: no square leaves the range.
        p_norm = self.pPp.sqrt()
        along = self.sPp / p_norm / radius
        room = torch.clamp(1 - self.sPs / radius / radius, min=0.0)
        root = torch.sqrt(along.square() + room)
        return torch.where(along > 0, room / (along + root), root - along) * (radius / p_norm)


@dataclass(frozen=True)
class _End:
    """Where a step ends: on the boundary, or where the path does; r = g + A s."""

    s: Tensor
    r: Tensor
    status: Status
    direction: Tensor | None = None
