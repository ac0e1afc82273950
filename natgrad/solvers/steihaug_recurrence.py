"""The path of conjugate gradients inside a trust region, segment by segment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from natgrad.solvers.linear_map import Multiply
from natgrad.solvers.scaled import Scaled, breakdown
from natgrad.solvers.scaling import dot, norm, power_of_two
from natgrad.solvers.solution import Status


class Recurrence:
    """Conjugate gradients from s = 0 for a model of unit size.

    Parameters
    ----------
    g
        The model's gradient, scaled, with the tolerance.
    multiply, precondition
        v ↦ A v in A's units, and v ↦ P⁻¹ v or None for P = I.
    limit
        The most iterations.

    Attributes
    ----------
    A_scale
        The power of two that divides A: 1 before the first product.
    products
        Products with A taken so far.
    """

    def __init__(
        self, g: Scaled, multiply: Multiply, precondition: Multiply | None, limit: int
    ) -> None:
        self.g, self.multiply, self.precondition, self.limit = g, multiply, precondition, limit
        self.A_scale = torch.ones_like(g.unit)
        self.products = 0

    def segments(self) -> Iterator[Segment | EndPoint]:
        """The path, each segment on demand; it ends with an end point, or a segment without end."""
        r = self.g.rhs
        s = torch.zeros_like(r)
        status = self.g.trivial()
        if status is not None:
            yield EndPoint(s, r, status)
            return
        A_norm = torch.zeros_like(self.g.norm)
        z = r if self.precondition is None else self.precondition(r)
        P_scale = power_of_two(z).double()
        z = z / P_scale
        p, rz = -z, dot(r, z)
        # P s and P p in units of P_scale, known since P z = r. The recurrences of algorithm 7.5.1
        # for the norms alone rely on an orthogonality that rounding destroys.
        Ps, Pp = s, -r
        for _ in range(self.limit):
            sPs, sPp, pPp = dot(s, Ps) / P_scale, dot(s, Pp) / P_scale, dot(p, Pp) / P_scale
            # Fails only where the preconditioner is not positive definite or not finite.
            if not bool((rz > 0) & (pPp > 0)):
                yield EndPoint(s, r, breakdown(rz))
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
                yield EndPoint(s, r, Status.NONFINITE)
                return
            positive = bool(curvature > self.g.eps * p_norm * Ap_norm)
            yield Segment(s, r, p, Ap, alpha, sPs, sPp, pPp, positive)
            if not positive:
                return
            s, r = s + alpha * p, r + alpha * Ap
            Ps = s if self.precondition is None else Ps + alpha * Pp
            if bool(norm(r) <= self.g.tolerance):
                r = self.g.rhs + self.multiply(s) / self.A_scale
                self.products += 1
                passed = bool(norm(r) <= self.g.threshold(A_norm * norm(s)))
                yield EndPoint(s, r, Status.CONVERGED if passed else Status.STAGNATED)
                return
            z = r if self.precondition is None else self.precondition(r) / P_scale
            rz_next = dot(r, z)
            beta = rz_next / rz
            p, rz = beta * p - z, rz_next
            Pp = p if self.precondition is None else beta * Pp - r
        yield EndPoint(s, r, Status.MAX_ITERATIONS)


@dataclass(frozen=True)
class Segment:
    """The path from s to s + α p; without end where curvature along p is not positive.

    Attributes
    ----------
    s, r
        The iterate, and the model's gradient r = g + A s there.
    p, Ap, alpha
        The direction, its product and the length α.
    sPs, sPp, pPp
        ‖s‖², sᵀp and ‖p‖² in the norm of the radius, 0-d float64.
    positive
        Whether curvature along p is positive.
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
        """Whether the whole segment lies inside the boundary.

        Parameters
        ----------
        radius
            In the model's units, 0-d float64.
        """
        squared = self.sPs + self.alpha * (2 * self.sPp + self.alpha * self.pPp)
        return self.positive and bool(squared.sqrt() < radius)

    def cut(self, radius: Tensor, *, euclidean: bool) -> EndPoint:
        """The point of the segment on the boundary.

        Parameters
        ----------
        radius
            In the model's units, 0-d float64.
        euclidean
            Whether P = I: then s is scaled back where rounding put it outside.

        Returns
        -------
        EndPoint
            With s in units of the radius, which in the model's may be beyond the dtype's range.
        """
        tau = self._to_boundary(radius)
        s = (self.s.double() + tau * self.p.double()) / radius
        if euclidean:
            s = s / torch.clamp(norm(s), min=1.0)
        r = self.r + tau * self.Ap
        if self.positive:
            return EndPoint(s, r, Status.BOUNDARY)
        return EndPoint(s, r, Status.NEGATIVE_CURVATURE, self.p)

    def _to_boundary(self, radius: Tensor) -> Tensor:
        """The positive root τ of ‖s + τ p‖ = radius, in the form that does not cancel."""
        # s in units of the radius and p in units of ‖p‖: no square leaves the range.
        p_norm = self.pPp.sqrt()
        along = self.sPp / p_norm / radius
        room = torch.clamp(1 - self.sPs / radius / radius, min=0.0)
        root = torch.sqrt(along.square() + room)
        return torch.where(along > 0, room / (along + root), root - along) * (radius / p_norm)


@dataclass(frozen=True)
class EndPoint:
    """The end of a step: on the boundary, or that of the path.

    Attributes
    ----------
    s, r
        The iterate, and r = g + A s.
    status, direction
        As in a :class:`natgrad.solvers.Solution`.
    """

    s: Tensor
    r: Tensor
    status: Status
    direction: Tensor | None = None
