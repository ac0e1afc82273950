"""Conjugate gradients on a scaled, damped system: iteration, verification and restart."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from natgrad.solvers.linear_map import Multiply
from natgrad.solvers.scaled import Scaled, breakdown
from natgrad.solvers.scaling import dot, norm, power_of_two
from natgrad.solvers.solution import Iterate, Solution, Status
from natgrad.solvers.stopping import Stopping

MAX_RESTARTS = 3


class Recurrence:
    """x, r = b − (A + λ I) x and the direction p, in scaled units.

    The system is (κ/α Â + λ/α I) x̂ = b̂ with A = κ Â, b = β b̂ and x = x̂ β/α, for powers of two
    α, β, κ. α is the size of A + λ I, κ that of A: λ may exceed A by more than the dtype's range.

    Parameters
    ----------
    b
        The right-hand side, scaled, with the tolerance.
    damping
        λ >= 0, in A's units.
    precondition
        v ↦ M⁻¹ v, or None.
    stopping
        The settings that end the solve.

    Attributes
    ----------
    x, r, p
        The iterate, its residual and the direction, (n,) each.
    alive, positive, claimed
        Whether the solve goes on, curvature was positive, the residual is below the tolerance: 0-d,
        on the device.
    """

    def __init__(
        self, b: Scaled, damping: float, precondition: Multiply | None, stopping: Stopping
    ) -> None:
        self.b, self.damping, self.precondition, self.stopping = b, damping, precondition, stopping
        self.scale = self.A_scale = self.ratio = torch.ones_like(b.unit)  # α, κ, κ/α
        self.x, self.r = torch.zeros_like(b.rhs), b.rhs
        self.Ax = torch.zeros_like(b.rhs) if damping else None  # without damping A x is b − r
        self.products = self.restarts = 0
        self.last_true_norm, self.claim = b.norm, b.tolerance
        self.squares: list[tuple[Tensor, Tensor]] = []  # ‖A p‖² and ‖p‖² of every direction
        self.model_values: list[Tensor] = []
        self.iterates: list[Iterate[Tensor]] = []
        self.next_kept = 1.0 if stopping.growth < math.inf else math.inf

    def _set_scales(self, product: Tensor, unit: Tensor) -> None:
        """Take α and κ from the first product, with a vector of size ``unit``."""
        self.scale = self.A_scale = power_of_two(product) / unit
        if self.damping:
            # The maximum, since the sum could leave the range.
            damping = power_of_two(self.A_scale.new_tensor(self.damping))
            self.scale = torch.maximum(self.A_scale, damping)
            self.shift = (self.damping / self.scale.double()).to(self.scale)  # λ/α
            self.ratio = self.A_scale / self.scale

    def _damped(self, product: Tensor, v: Tensor) -> Tensor:
        """(A + λ I) v, in units of α, from A v in units of κ."""
        if not self.damping:
            return product
        return torch.addcmul(self.shift * v, product, self.ratio)

    def start_at(self, guess: Tensor, product: Tensor) -> Status | None:
        """Start at x0.

        Parameters
        ----------
        guess, product
            x0 / β, and its product with A.

        Returns
        -------
        Status or None
            The status where the solve ends here, else None.
        """
        self.products += 1
        if not bool(torch.isfinite(product).all()):
            return Status.NONFINITE
        self._set_scales(product, power_of_two(guess))
        # x0 may be of any size; its image, and so x̂ = x0 α/β, has that of b.
        self.x = guess * self.scale
        product = product / self.A_scale * self.scale
        image = self._damped(product, self.x)
        self.r = self.b.rhs - image
        self.Ax = product if self.damping else None
        if bool(norm(self.r) <= self.b.threshold(norm(image))):
            return Status.CONVERGED
        # A zero residual above the threshold is solved, but beyond what rounding lets us certify.
        return None if bool(self.r.any()) else Status.STAGNATED

    def _preconditioned(self) -> Tensor:
        """M⁻¹ r, r itself without a preconditioner."""
        return self.r if self.precondition is None else self.precondition(self.r)

    def begin(self) -> Status | None:
        """Set the first direction; return a status where the preconditioner yields none."""
        z = self._preconditioned()
        self.P_scale = power_of_two(z)
        self.p = z / self.P_scale
        self.rz = self.curvature = torch.dot(self.r, self.p)
        if not bool(self.rz > 0):
            return breakdown(self.rz)
        self.claim_squared = self.claim.square().to(self.rz)
        self.alive = torch.ones_like(self.rz, dtype=torch.bool)
        self.positive, self.claimed, self.stopped = self.alive, ~self.alive, ~self.alive
        return None

    def _kept(self, new: Tensor, old: Tensor) -> Tensor:
        """``new`` while the solve goes on: until the next read-back a finished one idles."""
        return torch.where(self.alive, new, old) if self.stopping.check_every > 1 else new

    def advance(self, product: Tensor) -> None:
        """One iteration, without a read-back from the device.

        Where n is small each torch call costs as much as a vector operation: add none.

        Parameters
        ----------
        product
            The product of the unscaled A with p.
        """
        b, kept, p = self.b, self._kept, self.p
        if self.products == 0:
            self._set_scales(product, torch.ones_like(b.unit))  # p is of unit size
        self.products += 1
        product = product / self.A_scale
        Ap = self._damped(product, p)
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
        """Keep x and xᵀA x where ``iterate_growth`` asks for it.

        Parameters
        ----------
        iteration
            The number of this iteration, from 1.
        """
        if iteration < self.next_kept:
            return
        x, Ax = self.x, self.Ax
        xAx = dot(x, self.b.rhs - self.r) if Ax is None else dot(x, Ax) * self.ratio.double()
        self.iterates.append(Iterate(x, xAx))
        self.next_kept = max(self.next_kept * self.stopping.growth, iteration + 1.0)

    def why_ended(self) -> Status:
        """The status of a solve that ended without a claim: by ``stop``, or as rᵀz <= 0 or NaN."""
        return Status.STOPPED if bool(self.stopped) else breakdown(self.rz)

    def verify(self, product: Tensor) -> Status | None:
        """Judge a claim of convergence by the true residual.

        Parameters
        ----------
        product
            The product of the unscaled A with x.

        Returns
        -------
        Status or None
            CONVERGED or STAGNATED; None where the solve restarts from the true residual.
        """
        self.products += 1
        product = product / self.A_scale
        self.r = self.b.rhs - self._damped(product, self.x)
        self.Ax = product if self.damping else None
        true_norm = norm(self.r)
        # The p of an idle iteration may be 0, and then says nothing about ‖A‖.
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
        self.p = self._preconditioned() / self.P_scale
        self.rz, self.alive = torch.dot(self.r, self.p), ~self.alive
        return None

    def without_last_step(self, iteration: int) -> Solution[Tensor]:
        """The solution where curvature along p was not positive: the iterate before it.

        Parameters
        ----------
        iteration
            The number of this iteration, from 1.
        """
        self.x, self.r, p, self.Ax = self.before
        status = breakdown(self.curvature)
        direction = p if status is Status.NEGATIVE_CURVATURE else None
        return self.solution(status, iteration, direction)

    def solution(
        self, status: Status, iterations: int, direction: Tensor | None = None
    ) -> Solution[Tensor]:
        """The solution in the caller's units, NONFINITE where it left the dtype's range.

        Parameters
        ----------
        status, iterations, direction
            As in :class:`natgrad.solvers.Solution`.
        """
        b_hat, r = self.b.rhs, self.r
        Ax = b_hat - r if self.Ax is None else self.Ax * self.ratio
        account = iterations, self.products, float(norm(r if self.damping else b_hat - Ax))
        found = Solution(self.x, Ax, status, *account, direction, iterates=tuple(self.iterates))
        return self.b.answer(found, self.scale)
