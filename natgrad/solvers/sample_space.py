"""Damped least squares solved in the space of samples, where m < n: one eigendecomposition."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from natgrad.solvers.problem import check_damping, check_tolerances, require
from natgrad.solvers.scaling import norm, power_of_two
from natgrad.solvers.secular import solve_secular
from natgrad.solvers.solution import Solution, Status


class GramLike(Protocol):
    """J Jᵀ of a Jacobian J (m, n): as a matrix, and the way back to the parameters."""

    def to_dense(self) -> Tensor: ...
    def transpose(self, u: Tensor, /) -> Tensor: ...


def sample_space(gram: GramLike) -> SampleSpace:
    """Decompose K = J Jᵀ (m, m) once, for any right-hand side, damping and radius.

    ``gram`` is a :class:`natgrad.curvature.Gram`, or anything with ``to_dense()`` and
    ``transpose(u)``, u ↦ Jᵀu. Raises ``ValueError`` where K is not symmetric positive semidefinite
    to rounding.

    Cost: forming K, 9 m³ operations for its eigenvalues and vectors, in float64: singular values
    of J appear squared in K, so that float32 would lose half its digits twice.

    Source: (JᵀJ + λI)⁻¹Jᵀ = Jᵀ(JJᵀ + λI)⁻¹; Chen & Heyl, "Empowering deep neural quantum states
    through efficient optimization", 2024 (minSR); Guzmán-Cordero et al. 2025 (ENGD-Woodbury).
    """
    return SampleSpace(gram)


class SampleSpace:
    """What :func:`sample_space` returns; ``eigenvalues`` (m,) are those of K, ascending."""

    def __init__(self, gram: GramLike) -> None:
        matrix = gram.to_dense().detach()
        require(
            matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1] > 0,
            f"expected a square matrix J Jᵀ, not empty, got shape {tuple(matrix.shape)}",
        )
        self._transpose = gram.transpose
        self._like = matrix.new_empty(0)
        self._scale = power_of_two(matrix).double()
        wide = (matrix / self._scale).double()
        self._finite = bool(torch.isfinite(wide).all())
        if not self._finite:
            wide = torch.zeros_like(wide)
        self._matrix = (wide + wide.mT) / 2
        eigenvalues, self._vectors = torch.linalg.eigh(self._matrix)
        rounding = len(wide) * torch.finfo(matrix.dtype).eps * eigenvalues.abs().amax()
        asymmetry = (wide - wide.mT).abs().amax()
        if bool(asymmetry > math.sqrt(torch.finfo(matrix.dtype).eps) * wide.abs().amax()):
            raise ValueError(
                "expected a symmetric matrix J Jᵀ; its antisymmetric part is not rounding"
            )
        if bool(eigenvalues[0] < -10 * rounding):
            raise ValueError(
                "expected a positive semidefinite matrix J Jᵀ, got one whose lowest eigenvalue is "
                f"{float(eigenvalues[0] / eigenvalues.abs().amax()):.3g} of the largest"
            )
        # What rounding alone explains is zero: its inverse would be noise.
        self.eigenvalues = torch.where(eigenvalues > rounding, eigenvalues, 0.0) * self._scale

    def solve(
        self, r: Tensor, *, damping: float = 0.0, radius: float = math.inf, rtol: float = 1e-5
    ) -> Solution[Tensor]:
        """x = Jᵀ(J Jᵀ + λ I)⁻¹ r (n,), the solution of (JᵀJ + λ I) x = Jᵀr; λ is the ``damping``.

        With a ``radius``, λ grows by the ``multiplier`` that makes ‖x‖₂ = radius where x were
        longer (status BOUNDARY). With λ = 0 this is the least-squares solution of least norm.
        ``Ax`` is JᵀJ x, ``residual_norm`` that of the system solved, with K as given and its
        solution as rounded to its dtype. CONVERGED says that it is at most ``rtol`` ‖Jᵀr‖,
        STAGNATED that rounding left more. NONFINITE where J or r are.

        Cost: m² operations and 2 products with Jᵀ, which ``products`` counts, for every call.

        Raises ``ValueError`` for r of another shape or dtype, a damping that is negative or not
        finite, a radius that is not positive.
        """
        m = len(self.eigenvalues)
        if r.shape != (m,) or r.dtype != self._like.dtype or r.device != self._like.device:
            raise ValueError(
                f"r must be ({m},) {self._like.dtype} on {self._like.device}, "
                f"got {tuple(r.shape)} {r.dtype} on {r.device}"
            )
        check_damping(damping)
        require(radius > 0, f"radius must be positive, got {radius}")
        check_tolerances(rtol)
        c = self._vectors.mT @ r.detach().double()
        theta = self.eigenvalues
        usable = self._finite and bool(torch.isfinite(c).all())
        shift = theta.new_tensor(damping)
        status = Status.CONVERGED if usable else Status.NONFINITE
        multiplier = torch.zeros_like(shift)
        # x = Σ √θᵢ cᵢ / (θᵢ + λ) wᵢ in the right singular vectors wᵢ of J.
        solvable = (theta + shift > 0) & usable
        projected = torch.where(solvable, theta.sqrt() * c, 0.0)
        denominator = torch.where(solvable, theta + shift, 1.0)
        if bool(norm(projected / denominator) > radius):
            bound = theta.new_tensor(radius)
            multiplier = solve_secular(theta + shift, projected, bound).multiplier
            status, shift = Status.BOUNDARY, shift + multiplier
            denominator = torch.where(solvable, theta + shift, 1.0)
        u = torch.where(solvable, c / denominator, 0.0)
        u = (self._vectors @ u).to(self._like)
        x = self._transpose(u)
        if radius < math.inf:
            fit = torch.clamp(radius / norm(x), max=1.0)  # rounding may have put x outside
            x, u = fit * x, fit * u
        Ku = self._scale * (self._matrix @ u.double())
        Ax = self._transpose(Ku.to(self._like))
        # ‖Jᵀρ‖ of the residual ρ in sample space.
        rho = c - self._vectors.mT @ (Ku + shift * u.double())
        residual = norm(theta.sqrt() * rho)
        if not bool(torch.isfinite(norm(x)) & torch.isfinite(norm(Ax))):
            status, x, Ax = Status.NONFINITE, torch.zeros_like(x), torch.zeros_like(Ax)
        elif status is Status.CONVERGED:
            rhs_norm = norm(theta.sqrt() * c)
            if not bool(rhs_norm > 0):
                status = Status.ZERO_RHS
            elif not bool(residual <= rtol * rhs_norm):
                status = Status.STAGNATED
        return Solution(x, Ax, status, 0, 2, float(residual), None, float(multiplier))
