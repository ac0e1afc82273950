"""A low-rank approximation as a preconditioner."""

from __future__ import annotations

import math
from typing import Protocol

from torch import Tensor

from natgrad.solvers.preconditioners.preconditioner import Preconditioner


class LowRankLike(Protocol):
    """A low-rank matrix U diag(λ) Uᵀ.

    Attributes
    ----------
    vectors
        U (n, k), orthonormal.
    eigenvalues
        λ (k,), >= 0.
    """

    @property
    def vectors(self) -> Tensor: ...
    @property
    def eigenvalues(self) -> Tensor: ...


def nystrom(approximation: LowRankLike, damping: float) -> Preconditioner:
    """v ↦ M⁻¹ v, a preconditioner for A + μ I from A ≈ U Λ Uᵀ.

    M⁻¹ = (λ_min + μ) U (Λ + μ)⁻¹ Uᵀ + (I − U Uᵀ), λ_min the smallest eigenvalue kept.

    Parameters
    ----------
    approximation
        U and Λ, such as a :class:`natgrad.curvature.LowRank` from ``LowRank.nystrom(A, rank)``.
    damping
        μ > 0, in A's units: that of the system to be solved.

    Raises
    ------
    ValueError
        For a damping that is not positive and finite: without one M would be singular where the
        approximation is.

    Notes
    -----
    Cost: 4 n k operations a product.

    Source: Frangella, Tropp & Udell, "Randomized Nyström preconditioning", 2023, equation 5.3.
    """
    if not (math.isfinite(damping) and damping > 0):
        raise ValueError(f"damping must be positive and finite, got {damping}")
    U, eigenvalues = approximation.vectors, approximation.eigenvalues
    if eigenvalues.numel() == 0:
        return Preconditioner(lambda v: v, U.shape[0], U.device)
    # Minus one, since the identity is added on all of space: one pass with U and one with Uᵀ.
    weights = (eigenvalues.min() + damping) / (eigenvalues + damping) - 1
    return Preconditioner(lambda v: v + U @ (weights * (U.mT @ v)), U.shape[0], U.device)
