"""Damped least squares solved in the space of samples, where m < n: one eigendecomposition."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from natgrad.solvers.checks import as_samples, check_region, check_tolerances, require
from natgrad.solvers.scaling import as_float, length, power_of_two, quotient, rescale
from natgrad.solvers.secular import solve_secular
from natgrad.solvers.solution import Solution, Status

SMALLEST = 2.0**-1000  # lower bound of the radius, in units of the solution without one


class GramLike(Protocol):
    """J Jᵀ of a Jacobian J (m, n), as a matrix (m, m), and the product u ↦ Jᵀu."""

    def to_dense(self) -> Tensor:
        """J Jᵀ (m, m)."""

    def transpose(self, u: Tensor, /) -> Tensor:
        """Jᵀu (n,) for u (m,)."""


def sample_space(gram: GramLike) -> SampleSpace:
    """Decompose K = J Jᵀ (m, m) once, to be solved with any right-hand side, damping and radius.

    Parameters
    ----------
    gram
        A :class:`natgrad.curvature.Gram`, or anything with ``to_dense()``, which is K, and
        ``transpose(u)``, u ↦ Jᵀu.

    Returns
    -------
    SampleSpace
        Call ``.solve(r, damping=..., radius=...)``.

    Raises
    ------
    ValueError
        Where K is not symmetric positive semidefinite to rounding.

    Notes
    -----
    Squares of J's singular values below m eps (float64's) of the largest are lost in K, in any
    dtype: ``lost`` tells whether there may be such. Where rows of J differ in size by 10⁷ and
    more there are; use :func:`least_squares` of J itself, which resolves them.

    Cost: forming K, 9 m³ operations for its eigenvalues and vectors, in float64: singular values
    of J appear squared in K, so that float32 would lose half its digits twice.

    Source: (JᵀJ + λI)⁻¹Jᵀ = Jᵀ(JJᵀ + λI)⁻¹; Chen & Heyl, "Empowering deep neural quantum states
    through efficient optimization", 2024 (minSR); Guzmán-Cordero et al. 2025 (ENGD-Woodbury).
    """
    return SampleSpace(gram)


class SampleSpace:
    """The decomposition of :func:`sample_space`.

    Parameters
    ----------
    gram
        K = J Jᵀ, as in :func:`sample_space`.
    rounding
        Relative rounding error of K's entries; eps of its dtype where None. Lower it where they
        were computed more accurately.

    Attributes
    ----------
    eigenvalues
        Those of K (m,), ascending, float64; 0 below the rounding of K.
    lost
        Whether an eigenvalue that counts as 0 may be more than rounding of K, hidden by the error
        of the decomposition.
    """

    def __init__(self, gram: GramLike, *, rounding: float | None = None) -> None:
        matrix = gram.to_dense().detach()
        require(
            matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1] > 0,
            f"expected a square matrix J Jᵀ, not empty, got shape {tuple(matrix.shape)}",
        )
        m, eps = len(matrix), torch.finfo(matrix.dtype).eps
        self._transpose = gram.transpose
        self._like = matrix.new_empty(0)
        self._scale = power_of_two(matrix).double()
        wide = matrix.double() / self._scale
        self._finite = bool(torch.isfinite(wide).all())
        if not self._finite:
            wide = torch.zeros_like(wide)
        self._matrix = (wide + wide.mT) / 2
        eigenvalues, self._vectors = torch.linalg.eigh(self._matrix)
        largest = eigenvalues.abs().amax()
        asymmetry = (wide - wide.mT).abs().amax()
        if bool(asymmetry > math.sqrt(eps) * wide.abs().amax()):
            raise ValueError(
                "expected a symmetric matrix J Jᵀ; its antisymmetric part is not rounding"
            )
        if bool(eigenvalues[0] < -10 * m * eps * largest):
            raise ValueError(
                "expected a positive semidefinite matrix J Jᵀ, got one whose lowest eigenvalue is "
                f"{float(eigenvalues[0] / largest):.3g} of the largest"
            )
        # Zero eigenvalues below rounding: inverting them amplifies noise. Rounding of K_jk is
        # relative to √(K_jj K_kk): a row of J that is smaller than others has less of it.
        rows = self._matrix.diagonal().clamp(min=0.0)
        rounding = eps if rounding is None else rounding
        noise = math.sqrt(m) * rounding * (self._vectors.square().mT @ rows)
        floor = m * torch.finfo(torch.float64).eps * largest
        self._rounding = torch.maximum(noise, floor)
        unknown = (eigenvalues <= floor) & (eigenvalues + floor > noise)
        self.lost = bool(unknown.any())
        self._theta = torch.where(eigenvalues > self._rounding, eigenvalues, 0.0)
        # For the residual: also the eigenvalues that may be real, but are left out of the solve.
        self._possible = torch.where(unknown, eigenvalues.clamp(min=0.0), self._theta)
        self.eigenvalues = self._theta * self._scale

    def solve(
        self, r: Tensor, *, damping: float = 0.0, radius: float = math.inf, rtol: float = 1e-5
    ) -> Solution[Tensor]:
        """x = Jᵀ(J Jᵀ + λ I)⁻¹ r (n,), the solution of (JᵀJ + λ I) x = Jᵀr, within a radius.

        Parameters
        ----------
        r
            Right-hand side (m,), in K's dtype, on its device.
        damping
            λ >= 0, in K's units; with 0, x is the least-squares solution of least norm.
        radius
            Bound on ‖x‖₂, > 0. Where x would be longer, λ grows by the ``multiplier`` that makes
            ‖x‖₂ = radius.
        rtol
            Relative residual for CONVERGED.

        Returns
        -------
        Solution
            ``Ax`` is JᵀJ x; ``residual_norm`` that of the system solved, with K as given and its
            solution as rounded to its dtype. With the status

            - CONVERGED, ``residual_norm`` is at most ``rtol`` ‖Jᵀr‖;
            - STAGNATED, rounding left more;
            - BOUNDARY, ‖x‖₂ = radius;
            - NONFINITE, J or r are not finite, or x or ``Ax`` leave the dtype's range: x = 0.

        Raises
        ------
        ValueError
            For r of another shape, dtype or device, a damping that is negative or not finite, a
            radius that is not positive.

        Notes
        -----
        Cost, for every call: m² operations and 2 products with Jᵀ, which ``products`` counts.
        """
        check_region(damping, radius)
        check_tolerances(rtol)
        if torch.is_grad_enabled() and r.requires_grad:
            raise ValueError(
                "r requires gradients, but a Gram matrix has no product with J, which derivatives "
                "need: pass r.detach(), or use least_squares or cg"
            )
        r = as_samples(r, len(self.eigenvalues), self._like)
        # In units of the scales: K = σ K̂, r = β r̂, Jᵀu = (β / σ) Jᵀû.
        r_scale = power_of_two(r).double()
        hat = r.double() / r_scale
        c = self._vectors.mT @ hat
        theta = self._theta
        usable = self._finite and bool(torch.isfinite(c).all())
        shift = damping / self._scale
        status, multiplier = Status.CONVERGED, torch.zeros_like(shift)
        # x = Σ √θᵢ cᵢ / (θᵢ + λ) wᵢ in the right singular vectors wᵢ of J.
        # Where θᵢ is rounding, dividing by a damping below that rounding amplifies noise.
        solvable = ((theta > 0) | (shift > self._rounding)) & usable
        root = theta.sqrt()
        projected = torch.where(solvable, root * c, 0.0)
        denominator = torch.where(solvable, theta + shift, 1.0)
        bound = as_float(*quotient((radius, math.sqrt(self._scale)), (float(r_scale),)))
        bound = max(bound, SMALLEST)
        if bool(length(projected / denominator) > bound):
            multiplier = solve_secular(theta + shift, projected, theta.new_tensor(bound)).multiplier
            status = Status.BOUNDARY
            denominator = torch.where(solvable, theta + shift + multiplier, 1.0)
        u = torch.where(solvable, c / denominator, 0.0)
        u_scale = power_of_two(u)
        # u at unit size, so that Jᵀu and K u stay within the range of the dtype.
        u = (self._vectors @ (u / u_scale)).to(self._like)
        x = self._transpose(u)
        Ku = self._matrix @ u.double()
        Ax = self._transpose(Ku.to(self._like))
        times, over = [r_scale, u_scale], [self._scale]
        scales = (radius, float(self._scale)), (float(r_scale), float(u_scale))
        # An x shorter than the radius may be longer after rounding.
        if status is Status.BOUNDARY or bool(length(x) > as_float(*quotient(*scales))):
            # In units of the radius, which in the scaled units may be out of range.
            times, over = [shift.new_tensor(radius)], [length(x)]
        x, kept = rescale(x, times, over)
        Ax, _ = rescale(Ax, (*times, self._scale), over)
        # ‖Jᵀρ‖ of the residual ρ in sample space.
        factor, _ = rescale(theta.new_ones(1), (*times, self._scale), (*over, r_scale))
        rho = c - factor * (self._vectors.mT @ (Ku + (shift + multiplier) * u.double()))
        residual = length(self._possible.sqrt() * rho)
        finite = kept & torch.isfinite(Ax).all() & torch.isfinite(residual)
        if not usable or not bool(finite):
            status, x, Ax = Status.NONFINITE, torch.zeros_like(x), torch.zeros_like(Ax)
        elif status is Status.CONVERGED:
            rhs_norm = length(self._possible.sqrt() * c)
            if not bool(rhs_norm > 0):
                # ‖Jᵀr‖ may be 0 only because squares underflowed or eigenvalues were zeroed.
                zero = not bool(self._transpose(hat.to(self._like)).any())
                status = Status.ZERO_RHS if zero else Status.STAGNATED
                x, Ax = torch.zeros_like(x), torch.zeros_like(Ax)
            elif not bool(residual <= rtol * rhs_norm):
                status = Status.STAGNATED
        residual_norm = float(residual * self._scale.sqrt() * r_scale)
        return Solution(x, Ax, status, 0, 2, residual_norm, None, float(multiplier * self._scale))
