"""The diagonal blocks of a Kronecker-factored matrix, and those for parameters outside layers."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any, Protocol

import torch
from torch import Tensor

from natgrad import flat


class DampingSplit(Enum):
    """How damping λ enters a Kronecker product G ⊗ A.

    Attributes
    ----------
    EXACT
        G ⊗ A + λ I, solved in the eigenbasis. Repeated solves with other λ are cheap.
    TRACE
        The factored form (G + √λ/π I) ⊗ (A + π√λ I), solved by Cholesky factorisations: cheaper for
        one λ, but only an approximation of EXACT.
    """

    EXACT = "G ⊗ A + λ I, in the eigenbasis"
    TRACE = "(G + √λ/π I) ⊗ (A + π√λ I), π² = (tr A / d_in) / (tr G / d_out)"


class NonFiniteFactors(ValueError):
    """A factor holds NaN or infinity."""


class Block(Protocol):
    """A diagonal block, which acts on pieces shaped like its parameters with a trailing k."""

    @property
    def owners(self) -> Sequence[Tensor]:
        """The parameters whose rows the block holds."""

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """The tensors from which the block can be built again."""

    def blend(self, earlier: Any, decay: float) -> None:
        """Average with an earlier block of the same owners, whose weight is ``decay``."""

    def multiply(self, pieces: list[Tensor]) -> list[Tensor]:
        """Compute K V."""

    def solve(self, pieces: list[Tensor], damping: float, split: DampingSplit) -> list[Tensor]:
        """Compute (K + λ I)⁻¹ V, with λ the ``damping``.

        Raises ``ValueError`` if the matrix is singular.
        """


class DenseBlock:
    """The exact joint block of a few parameters, a matrix (m, m) in their order."""

    def __init__(self, owners: Sequence[Tensor], matrix: Tensor) -> None:
        require_finite("the dense block of the remaining parameters", matrix)
        self.owners, self._matrix = owners, matrix
        self._cholesky: tuple[float, Tensor] | None = None

    @property
    def factors(self) -> tuple[Tensor, ...]:
        return (self._matrix,)

    def blend(self, earlier: DenseBlock, decay: float) -> None:
        self._matrix = torch.lerp(self._matrix, earlier._matrix, decay)

    def multiply(self, pieces: list[Tensor]) -> list[Tensor]:
        return self._split(self._matrix @ self._stack(pieces))

    def solve(self, pieces: list[Tensor], damping: float, split: DampingSplit) -> list[Tensor]:
        if self._cholesky is None or self._cholesky[0] != damping:
            factor, info = torch.linalg.cholesky_ex(shifted(self._matrix.double(), damping))
            if bool(info != 0):
                raise singular(damping, "the dense block of the remaining parameters")
            self._cholesky = damping, factor
        right = self._stack(pieces)
        return self._split(torch.cholesky_solve(right.double(), self._cholesky[1]).to(right))

    def _stack(self, pieces: list[Tensor]) -> Tensor:
        return torch.cat([piece.reshape(-1, piece.shape[-1]) for piece in pieces])

    def _split(self, matrix: Tensor) -> list[Tensor]:
        sizes = [flat.size(owner) for owner in self.owners]
        return [
            piece.reshape(*flat.as_real(owner).shape, matrix.shape[1])
            for piece, owner in zip(torch.split(matrix, sizes), self.owners, strict=True)
        ]


class DiagonalBlock:
    """The diagonal (m,) of the joint block of many parameters, in their order."""

    def __init__(self, owners: Sequence[Tensor], diagonal: Tensor) -> None:
        require_finite("the diagonal block of the remaining parameters", diagonal)
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
            raise singular(damping, "the diagonal block of the remaining parameters")
        return [
            piece / (weight + damping)
            for weight, piece in zip(self._weights(), pieces, strict=True)
        ]

    def _weights(self) -> list[Tensor]:
        sizes = [flat.size(owner) for owner in self.owners]
        return [
            weight.reshape(*flat.as_real(owner).shape, 1)
            for weight, owner in zip(torch.split(self._diagonal, sizes), self.owners, strict=True)
        ]


def shifted(matrix: Tensor, shift: Tensor | float) -> Tensor:
    """Return matrix + shift · I."""
    return matrix + shift * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)


def require_finite(what: str, *factors: Tensor) -> None:
    """Raise :class:`NonFiniteFactors` if a factor holds NaN or infinity; ``what`` names them."""
    if not all(bool(torch.isfinite(factor).all()) for factor in factors):
        raise NonFiniteFactors(
            f"{what} are not finite: inputs, weights or the distribution's scores hold NaN or "
            "infinity"
        )


def singular(damping: float, what: str) -> ValueError:
    """Build the error for factors, named by ``what``, that this damping leaves singular."""
    return ValueError(f"{what} are singular with damping={damping}; give a larger damping")
