"""One layer's block G ⊗ A: products, eigenbasis, damped solves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from typing import Protocol

import torch
from torch import Tensor, nn

from natgrad.curvature.layers import Layer


class DampingSplit(Enum):
    """How damping enters a Kronecker product."""

    EXACT = "G ⊗ A + λ I, in the eigenbasis"
    TRACE = "(G + √λ/π I) ⊗ (A + π√λ I), π² = (tr A / d_in) / (tr G / d_out)"


class Block(Protocol):
    """A diagonal block: acts on the pieces of its owners, each with a trailing dimension k."""

    @property
    def owners(self) -> Sequence[Tensor]: ...
    def multiply(self, pieces: list[Tensor]) -> list[Tensor]: ...
    def solve(self, pieces: list[Tensor], damping: float, split: DampingSplit) -> list[Tensor]: ...


class KroneckerBlock:
    """V ↦ G V A on a layer's gradient matrices V (d_out, d_in); A is (d_in, d_in) or its diagonal.

    Factorisations are float64: eigenvectors of a float32 factor would carry errors of the size of
    small dampings.
    """

    def __init__(self, layer: Layer, A: Tensor, G: Tensor) -> None:
        self.owners: Sequence[Tensor] = layer.owners
        self._layer, self._A, self._G = layer, A, G
        self._eigen: _Eigen | None = None
        self._corrected = False
        self._cholesky: tuple[float, Tensor, Tensor] | None = None

    def multiply(self, pieces: list[Tensor]) -> list[Tensor]:
        V = self._layer.matrix(pieces)
        if self._corrected:
            eigen = self._eigenbasis()
            return self._layer.pieces(eigen.back(eigen.values.to(V) * eigen.into(V)))
        V = self._G @ V
        return self._layer.pieces(V * self._A if self._A.ndim == 1 else V @ self._A)

    def solve(self, pieces: list[Tensor], damping: float, split: DampingSplit) -> list[Tensor]:
        V = self._layer.matrix(pieces)
        if split is DampingSplit.TRACE:
            return self._layer.pieces(self._solve_factored(V, damping))
        eigen = self._eigenbasis()
        damped = eigen.values + damping
        if not bool(damped.min() > torch.finfo(V.dtype).eps * damped.max()):
            raise _singular(damping, f"the factors of {self._layer.module}")
        return self._layer.pieces(eigen.back(eigen.into(V) / damped.to(V)))

    def rotated_inputs(self, *, reduce: bool) -> Tensor:
        """The layer's inputs (N, R, d_in) in the eigenbasis of A."""
        rows = self._layer.rows()
        if isinstance(self._layer.module, nn.Embedding):
            rows = nn.functional.one_hot(rows, len(self._A)).to(self._G)
        if reduce:
            # Gradients are summed over positions, so that inputs are averaged.
            rows = rows.mean(dim=1, keepdim=True)
        basis = self._eigenbasis().U_A
        return rows if basis is None else rows @ basis.to(rows)

    def second_moment(self, inputs: Tensor, gradients: Tensor) -> Tensor:
        """Σ_n (Σ_r g_nr a_nrᵀ)² entry by entry (d_out, d_in), in the eigenbasis."""
        g = gradients @ self._eigenbasis().U_G.to(gradients)
        if g.shape[1] == 1:
            return g[:, 0].square().mT @ inputs[:, 0].square()
        total = g.new_zeros(g.shape[2], inputs.shape[2])
        # Per-sample gradients are formed in slices of about 64 MB.
        step = max(1, 2**24 // max(total.numel(), 1))
        for start in range(0, len(g), step):
            span = slice(start, start + step)
            total += (g[span].mT @ inputs[span]).square().sum(dim=0)
        return total

    def correct(self, values: Tensor) -> None:
        """Take second moments (d_out, d_in) for the eigenvalues."""
        eigen = self._eigenbasis()
        self._eigen = _Eigen(eigen.U_G, eigen.U_A, values.double())
        self._corrected = True

    def _eigenbasis(self) -> _Eigen:
        if self._eigen is None:
            G_values, U_G = torch.linalg.eigh(self._G.double())
            if self._A.ndim == 1:
                A_values, U_A = self._A.double(), None
            else:
                A_values, U_A = torch.linalg.eigh(self._A.double())
            values = torch.outer(G_values.clamp(min=0.0), A_values.clamp(min=0.0))
            self._eigen = _Eigen(U_G, U_A, values)
        return self._eigen

    def _solve_factored(self, V: Tensor, damping: float) -> Tensor:
        if self._cholesky is None or self._cholesky[0] != damping:
            A = torch.diag(self._A) if self._A.ndim == 1 else self._A
            A, G = A.double(), self._G.double()
            A_mean, G_mean = A.diagonal().mean(), G.diagonal().mean()
            # Geometric: a product of traces would underflow where a layer is nearly dead.
            pi = torch.where((A_mean > 0) & (G_mean > 0), A_mean.sqrt() / G_mean.sqrt(), 1.0)
            root = math.sqrt(damping)
            left, left_info = torch.linalg.cholesky_ex(_shifted(G, root / pi))
            right, right_info = torch.linalg.cholesky_ex(_shifted(A, root * pi))
            if bool((left_info != 0) | (right_info != 0)):
                raise _singular(damping, f"a factor of {self._layer.module}")
            self._cholesky = damping, left.to(V), right.to(V)
        _, left, right = self._cholesky
        return torch.cholesky_solve(torch.cholesky_solve(V, left).mT, right).mT


class _Eigen:
    """Eigenvectors of G and A (None where A is diagonal) and the eigenvalues (d_out, d_in)."""

    def __init__(self, U_G: Tensor, U_A: Tensor | None, values: Tensor) -> None:
        self.U_G, self.U_A, self.values = U_G, U_A, values

    def into(self, V: Tensor) -> Tensor:
        V = self.U_G.mT.to(V) @ V
        return V if self.U_A is None else V @ self.U_A.to(V)

    def back(self, V: Tensor) -> Tensor:
        V = self.U_G.to(V) @ V
        return V if self.U_A is None else V @ self.U_A.mT.to(V)


class DenseBlock:
    """The exact block of a few parameters together."""

    def __init__(self, owners: Sequence[Tensor], matrix: Tensor) -> None:
        self.owners, self._matrix = owners, matrix

    def multiply(self, pieces: list[Tensor]) -> list[Tensor]:
        return self._cut(self._matrix @ self._stack(pieces))

    def solve(self, pieces: list[Tensor], damping: float, split: DampingSplit) -> list[Tensor]:
        factor, info = torch.linalg.cholesky_ex(_shifted(self._matrix.double(), damping))
        if bool(info != 0):
            raise _singular(damping, "the dense block of the remaining parameters")
        right = self._stack(pieces)
        return self._cut(torch.cholesky_solve(right.double(), factor).to(right))

    def _stack(self, pieces: list[Tensor]) -> Tensor:
        return torch.cat([piece.reshape(-1, piece.shape[-1]) for piece in pieces])

    def _cut(self, matrix: Tensor) -> list[Tensor]:
        sizes = [owner.numel() for owner in self.owners]
        return [
            piece.reshape(*owner.shape, matrix.shape[1])
            for piece, owner in zip(torch.split(matrix, sizes), self.owners, strict=True)
        ]


def _shifted(matrix: Tensor, shift: Tensor | float) -> Tensor:
    return matrix + shift * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)


def _singular(damping: float, what: str) -> ValueError:
    return ValueError(f"{what} are singular with damping={damping}; give a larger damping")
