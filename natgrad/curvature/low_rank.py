"""Low-rank positive semidefinite matrices, and the randomised Nyström approximation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from natgrad.curvature.operator import LinearOperator


class LowRank(LinearOperator):
    """A positive semidefinite matrix U diag(λ) Uᵀ, (n, n), of rank at most k.

    Parameters
    ----------
    vectors
        U (n, k) with orthonormal columns; also an attribute.
    eigenvalues
        λ (k,) >= 0, of the same dtype; also an attribute.

    Raises
    ------
    ValueError
        If shapes do not fit, the columns are not orthonormal up to rounding, or an eigenvalue is
        negative or not finite.
    TypeError
        If the dtypes differ or are not real floating point.

    Notes
    -----
    Cost: 4 n k operations a product, n k memory.

    Examples
    --------
    >>> (LowRank(torch.eye(3)[:, :1], torch.tensor([2.0])) @ torch.ones(3)).tolist()
    [2.0, 0.0, 0.0]
    """

    def __init__(self, vectors: Tensor, eigenvalues: Tensor) -> None:
        if vectors.ndim != 2 or eigenvalues.shape != vectors.shape[1:]:
            raise ValueError(
                "expected vectors (n, k) and eigenvalues (k,), got shapes "
                f"{tuple(vectors.shape)} and {tuple(eigenvalues.shape)}"
            )
        if vectors.dtype != eigenvalues.dtype or not vectors.dtype.is_floating_point:
            raise TypeError(
                "vectors and eigenvalues must be of one real floating-point dtype, got "
                f"{vectors.dtype} and {eigenvalues.dtype}"
            )
        vectors, eigenvalues = vectors.detach(), eigenvalues.detach()
        if not bool(((eigenvalues >= 0) & torch.isfinite(eigenvalues)).all()):
            raise ValueError("eigenvalues must be finite and >= 0")
        gram = vectors.mT @ vectors
        error = (gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).abs()
        if not bool((error <= math.sqrt(torch.finfo(vectors.dtype).eps)).all()):
            raise ValueError("vectors must be orthonormal; use torch.linalg.qr or .eigh")
        super().__init__(vectors.shape[0], vectors.dtype, vectors.device)
        self.vectors, self.eigenvalues = vectors, eigenvalues

    def _multiply(self, matrix: Tensor) -> Tensor:
        return self.vectors @ (self.eigenvalues.unsqueeze(1) * (self.vectors.mT @ matrix))

    def diagonal(self) -> Tensor:
        """Return the diagonal (n,), Σ_j λⱼ Uᵢⱼ², without a product."""
        return self.vectors.square() @ self.eigenvalues

    @staticmethod
    def nystrom(A: LinearOperator, rank: int, *, generator: torch.Generator) -> LowRank:
        """Compute the Nyström approximation (AΩ)(ΩᵀAΩ)⁺(AΩ)ᵀ of A, with a random Ω (n, k).

        It is never larger than A, and exact if A's rank is at most k.

        Parameters
        ----------
        A
            A positive semidefinite operator (n, n).
        rank
            k, between 1 and n. Raise it if eigenvalues beyond the k largest matter; costs grow.
        generator
            Draws Ω; its state decides the result.

        Returns
        -------
        LowRank
            In A's dtype.

        Raises
        ------
        ValueError
            If ``rank`` is outside 1 … n, or if A is not finite or not positive semidefinite on the
            range of Ω: add damping then.

        Notes
        -----
        Cost: k products in one call of A; n k² operations in float64.
        Source: Tropp, Yurtsever, Udell & Cevher, "Fixed-rank approximation of a positive-
        semidefinite matrix from streaming data", 2017, algorithm 3.
        """
        n = A.shape[0]
        if not 1 <= rank <= n:
            raise ValueError(f"rank must lie in 1 … {n}, got {rank}")
        sample = torch.randn(n, rank, generator=generator, dtype=torch.float64, device=A.device)
        # A multiplies the basis as rounded to its dtype: go on with the rounded basis.
        basis = torch.linalg.qr(sample).Q.to(A.dtype)
        image = (A @ basis).double()
        basis = basis.double()
        largest = torch.linalg.matrix_norm(image)
        if not bool(torch.isfinite(largest)):
            raise ValueError("A has products that are not finite; check the point it belongs to")
        # Shift A so that the Cholesky factor exists; the eigenvalues are shifted back below.
        shift = math.sqrt(n) * torch.finfo(A.dtype).eps * largest
        image = image + shift * basis
        core = basis.mT @ image
        factor, info = torch.linalg.cholesky_ex((core + core.mT) / 2)
        if bool(info != 0):
            if not bool(largest > 0):
                return LowRank(basis.to(A.dtype), largest.new_zeros(rank).to(A.dtype))
            raise ValueError(
                "A is not positive semidefinite on the sampled range; add damping, or use a "
                "curvature that is, such as Fisher or GaussNewton"
            )
        half = torch.linalg.solve_triangular(factor, image.mT, upper=False).mT
        vectors, singular, _ = torch.linalg.svd(half, full_matrices=False)
        eigenvalues = torch.clamp(singular.square() - shift, min=0.0)
        return LowRank(vectors.to(A.dtype), eigenvalues.to(A.dtype))
