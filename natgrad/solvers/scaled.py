"""The frame that the iterative solvers share: b at unit size, and the answer in b's units again."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from natgrad.solvers.scaling import norm, power_of_two, unscale
from natgrad.solvers.solution import Iterate, Solution, Status


@dataclass(frozen=True)
class Scaled:
    """The right-hand side of Â x̂ = b̂, where b = β b̂, A = α Â and x = x̂ β / α.

    α and β are powers of two, so that no digit is lost.

    Attributes
    ----------
    rhs
        b̂ (n,), in b's dtype.
    unit
        β, 0-d, in b's dtype.
    norm
        ‖b̂‖₂, 0-d float64.
    tolerance
        The residual norm to reach, max(rtol ‖b̂‖, atol / β), 0-d float64.
    eps
        The rounding unit of b's dtype.
    """

    rhs: Tensor
    unit: Tensor
    norm: Tensor
    tolerance: Tensor
    eps: float

    @classmethod
    def of(cls, b: Tensor, rtol: float, atol: float = 0.0) -> Scaled:
        """Divide b by its power of two.

        Parameters
        ----------
        b
            A vector (n,), float32 or float64.
        rtol, atol
            The residual norm to reach is max(rtol ‖b‖, atol).
        """
        unit = power_of_two(b)
        b_hat = b / unit
        size = norm(b_hat)
        tolerance = torch.maximum(rtol * size, atol / unit.double())
        return cls(b_hat, unit, size, tolerance, torch.finfo(b.dtype).eps)

    def trivial(self) -> Status | None:
        """The status where b is zero or not finite, else None."""
        if not bool(torch.isfinite(self.rhs).all()):
            return Status.NONFINITE
        return None if bool(self.rhs.any()) else Status.ZERO_RHS

    def threshold(self, image_norm: Tensor) -> Tensor:
        """The tolerance less the rounding error of computing b − A x, eps (‖A x‖ + ‖b‖).

        Parameters
        ----------
        image_norm
            ‖A x‖₂ or a bound on it, in scaled units, 0-d.
        """
        return self.tolerance - self.eps * (image_norm + self.norm)

    def answer(
        self, found: Solution[Tensor], scale: Tensor, unit: Tensor | None = None
    ) -> Solution[Tensor]:
        """A solution of the scaled system in the caller's units.

        Parameters
        ----------
        found
            x̂, Â x̂, the norm of their residual, and the rest, all in scaled units.
        scale
            α, the divisor of A, 0-d.
        unit
            Replaces β in x = x̂ β / α, for an x̂ in units of its own.

        Returns
        -------
        Solution
            With the status NONFINITE where x, A x or the residual norm left the dtype's range.
        """
        x, kept = unscale(found.x, self.unit if unit is None else unit, scale, self.rhs.dtype)
        Ax = (found.Ax * self.unit).to(self.rhs)
        beta, alpha = self.unit.double(), scale.double()
        residual_norm = found.residual_norm * float(beta)
        finite = math.isfinite(residual_norm) and bool(kept & torch.isfinite(Ax).all())
        status = found.status if finite else Status.NONFINITE
        # 0 stays 0 where α is infinite.
        multiplier = found.multiplier and found.multiplier * float(alpha)
        iterates = tuple(
            Iterate(unscale(x, self.unit, scale)[0], beta * (beta / alpha) * xAx)
            for x, xAx in found.iterates
        )
        found = replace(found, x=x, Ax=Ax, status=status, residual_norm=residual_norm)
        return replace(found, multiplier=multiplier, iterates=iterates)


def breakdown(product: Tensor) -> Status:
    """The status where vᵀA v, or rᵀM⁻¹ r of a preconditioner M⁻¹, is not positive.

    Parameters
    ----------
    product
        That number, 0-d.
    """
    return Status.NEGATIVE_CURVATURE if bool(torch.isfinite(product)) else Status.NONFINITE
