"""A symmetric matrix that is known by its products."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from natgrad.testing.cases.system import System


@dataclass(frozen=True)
class MatrixOperator:
    """The matrix A of a :class:`System` behind ``A @ v``, v (n,) or (n, k)."""

    system: System

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.system), len(self.system)

    @property
    def dtype(self) -> torch.dtype:
        return self.system.dtype

    def __matmul__(self, v: Tensor) -> Tensor:
        return self.system.A @ v

    def to_dense(self) -> Tensor:
        return self.system.A
