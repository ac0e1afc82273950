"""One layer's block G ⊗ A: products, eigenbasis, damped solves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from typing import Any, Protocol

import torch
from torch import Tensor

from natgrad.autodiff.layers import Layer


class DampingSplit(Enum):
    """How damping enters a Kronecker product."""

    EXACT = "G ⊗ A + λ I, in the eigenbasis"
    TRACE = "(G + √λ/π I) ⊗ (A + π√λ I), π² = (tr A / d_in) / (tr G / d_out)"


class NonFiniteFactors(ValueError):
    """A factor holds NaN or infinity."""


class Block(Protocol):
    """A diagonal block: acts on the pieces of its owners, each with a trailing dimension k.

    ``factors`` are all it is made of; ``blend`` takes ``decay`` times those of an earlier block of
    the same owners, and 1 − ``decay`` times its own.
    """

    @property
    def owners(self) -> Sequence[Tensor]: ...
    @property
    def factors(self) -> tuple[Tensor, ...]: ...
    def blend(self, earlier: Any, decay: float) -> None: ...
    def multiply(self, pieces: list[Tensor]) -> list[Tensor]: ...
    def solve(self, pieces: list[Tensor], damping: float, split: DampingSplit) -> list[Tensor]: ...


class KroneckerBlock:
    """V ↦ G V A on a layer's gradient matrices V (d_out, d_in); A is (d_in, d_in) or its diagonal.

    Factorisations are float64: eigenvectors of a float32 factor would carry errors of the size of
    small dampings.
    """

    def __init__(self, layer: Layer, A: Tensor, G: Tensor) -> None:
        _require_finite(f"the factors of {layer.module}", A, G)
        self.owners: Sequence[Tensor] = layer.owners
        self._layer, self._A, self._G = layer, A, G
        self._eigen: _Eigen | None = None
        self._corrected = False
        self._inverses: tuple[float, Tensor, Tensor] | None = None

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """A, G, and the corrected eigenvalues, if any."""
        moments = (self._eigenbasis().values.to(self._A),) if self._corrected else ()
        return self._A, self._G, *moments

    def blend(self, earlier: KroneckerBlock, decay: float) -> None:
        """Before :meth:`correct`, whose basis is that of the blended factors."""
        self._A = torch.lerp(self._A, earlier._A, decay)
        self._G = torch.lerp(self._G, earlier._G, decay)
        self._eigen = self._inverses = None

    def blend_moments(self, earlier: KroneckerBlock, decay: float) -> None:
        """After :meth:`correct`: the earlier eigenvalues are turned into the new basis first, where
        they are the diagonal of what they described in the old one."""
        old, new = earlier._eigenbasis(), self._eigenbasis()
        turned = (new.U_G.mT @ old.U_G).square() @ old.values
        if old.U_A is not None and new.U_A is not None:
            turned = turned @ (old.U_A.mT @ new.U_A).square()
        self.correct(torch.lerp(new.values, turned, decay))

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
        if not bool(damped.min() > torch.finfo(damped.dtype).eps * damped.max()):
            raise _singular(damping, f"the factors of {self._layer.module}")
        return self._layer.pieces(eigen.back((eigen.into(V) / damped).to(V)))

    def rotated_inputs(self) -> Tensor:
        """The layer's inputs (N, R, d_in) in the eigenbasis of A; words (N, R) where A is
        diagonal."""
        basis, rows = self._eigenbasis().U_A, self._layer.rows()
        if basis is None:
            return rows
        if self._layer.is_embedding:  # the rows are indices of unit vectors
            return basis.to(self._A)[rows]
        return rows @ basis.to(rows)

    def second_moment(self, inputs: Tensor, gradients: Tensor) -> Tensor:
        """Σ_n (Σ_r g_nr a_nrᵀ)² entry by entry (d_out, d_in), in the eigenbasis."""
        eigen = self._eigenbasis()
        g = gradients @ eigen.U_G.to(gradients)
        if eigen.U_A is None:
            return _second_moment_of_words(inputs, g, len(self._A))
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
        """Take second moments (d_out, d_in) for the eigenvalues, in the factors' own precision, so
        that what :attr:`factors` gives is all there is."""
        eigen = self._eigenbasis()
        self._eigen = _Eigen(eigen.U_G, eigen.U_A, values.to(self._A).double())
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
        if self._inverses is None or self._inverses[0] != damping:
            A, G = self._A.double(), self._G.double()
            A_mean = (A if A.ndim == 1 else A.diagonal()).mean()
            G_mean = G.diagonal().mean()
            # Geometric: a product of traces would underflow where a layer is nearly dead.
            pi = torch.where((A_mean > 0) & (G_mean > 0), A_mean.sqrt() / G_mean.sqrt(), 1.0)
            root = math.sqrt(damping)
            left = _inverse(_shifted(G, root / pi))
            right = 1 / (A + root * pi) if A.ndim == 1 else _inverse(_shifted(A, root * pi))
            if not bool(torch.isfinite(left).all() & torch.isfinite(right).all()):
                raise _singular(damping, f"a factor of {self._layer.module}")
            self._inverses = damping, left.to(V), right.to(V)
        _, left, right = self._inverses
        V = left @ V
        return V * right if right.ndim == 1 else V @ right


def _second_moment_of_words(words: Tensor, g: Tensor, vocabulary: int) -> Tensor:
    """(d_out, V) from words (N, R), g (N, R, d_out): squares of a sample's sum for each word."""
    samples = torch.arange(len(words), device=words.device).unsqueeze(1)
    pairs, place = torch.unique((samples * vocabulary + words).flatten(), return_inverse=True)
    sums = g.new_zeros(len(pairs), g.shape[2]).index_add(0, place, g.flatten(0, 1))
    total = g.new_zeros(vocabulary, g.shape[2])
    return total.index_add(0, pairs % vocabulary, sums.square()).mT


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
        _require_finite("the dense block of the remaining parameters", matrix)
        self.owners, self._matrix = owners, matrix
        self._cholesky: tuple[float, Tensor] | None = None

    @property
    def factors(self) -> tuple[Tensor, ...]:
        return (self._matrix,)

    def blend(self, earlier: DenseBlock, decay: float) -> None:
        self._matrix = torch.lerp(self._matrix, earlier._matrix, decay)

    def multiply(self, pieces: list[Tensor]) -> list[Tensor]:
        return self._cut(self._matrix @ self._stack(pieces))

    def solve(self, pieces: list[Tensor], damping: float, split: DampingSplit) -> list[Tensor]:
        if self._cholesky is None or self._cholesky[0] != damping:
            factor, info = torch.linalg.cholesky_ex(_shifted(self._matrix.double(), damping))
            if bool(info != 0):
                raise _singular(damping, "the dense block of the remaining parameters")
            self._cholesky = damping, factor
        right = self._stack(pieces)
        return self._cut(torch.cholesky_solve(right.double(), self._cholesky[1]).to(right))

    def _stack(self, pieces: list[Tensor]) -> Tensor:
        return torch.cat([piece.reshape(-1, piece.shape[-1]) for piece in pieces])

    def _cut(self, matrix: Tensor) -> list[Tensor]:
        sizes = [owner.numel() for owner in self.owners]
        return [
            piece.reshape(*owner.shape, matrix.shape[1])
            for piece, owner in zip(torch.split(matrix, sizes), self.owners, strict=True)
        ]


class DiagonalBlock:
    """The diagonal (k,) of the block of many parameters together."""

    def __init__(self, owners: Sequence[Tensor], diagonal: Tensor) -> None:
        _require_finite("the diagonal block of the remaining parameters", diagonal)
        self.owners, self._diagonal = owners, diagonal

    @property
    def factors(self) -> tuple[Tensor, ...]:
        return (self._diagonal,)

    def blend(self, earlier: DiagonalBlock, decay: float) -> None:
        self._diagonal = torch.lerp(self._diagonal, earlier._diagonal, decay)

    def multiply(self, pieces: list[Tensor]) -> list[Tensor]:
        return [weight * piece for weight, piece in zip(self._weights(), pieces, strict=True)]

    def solve(self, pieces: list[Tensor], damping: float, split: DampingSplit) -> list[Tensor]:
        damped = self._diagonal + damping
        if not bool(damped.min() > 0):
            raise _singular(damping, "the diagonal block of the remaining parameters")
        return [
            piece / (weight + damping)
            for weight, piece in zip(self._weights(), pieces, strict=True)
        ]

    def _weights(self) -> list[Tensor]:
        sizes = [owner.numel() for owner in self.owners]
        return [
            weight.reshape(*owner.shape, 1)
            for weight, owner in zip(torch.split(self._diagonal, sizes), self.owners, strict=True)
        ]


def _shifted(matrix: Tensor, shift: Tensor | float) -> Tensor:
    return matrix + shift * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)


def _require_finite(what: str, *factors: Tensor) -> None:
    if not all(bool(torch.isfinite(factor).all()) for factor in factors):
        raise NonFiniteFactors(
            f"{what} are not finite: inputs, weights or the distribution's scores hold NaN or "
            "infinity"
        )


def _inverse(matrix: Tensor) -> Tensor:
    """The inverse of a positive definite matrix; NaN where it is not. Products with it take a
    quarter of the time of triangular solves with many right-hand sides."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    # What a failed factorisation leaves behind may have a zero on its diagonal, and some kernels
    # raise for it: the identity takes its place.
    sound = info == 0
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    inverse = torch.cholesky_inverse(torch.where(sound, factor, identity))
    return torch.where(sound, inverse, torch.nan)


def _singular(damping: float, what: str) -> ValueError:
    return ValueError(f"{what} are singular with damping={damping}; give a larger damping")
