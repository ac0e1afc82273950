"""A symmetric matrix, known by its products."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from natgrad.testing.cases.system import System


@dataclass(frozen=True)
class MatrixOperator:
    """The matrix A of a system, known by its products ``A @ v``, v (n,) or (n, k).

    Attributes
    ----------
    system
        The system.
    """

    system: System

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""
        return len(self.system), len(self.system)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of A."""
        return self.system.dtype

    def __matmul__(self, v: Tensor) -> Tensor:
        return self.system.A @ v

    def to_dense(self) -> Tensor:
        """A itself (n, n)."""
        return self.system.A
