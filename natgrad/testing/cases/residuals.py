"""A linear least-squares problem from singular values and a seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Residuals:
    """J (rows, columns) of these ``singular_values`` between random orthonormal bases, and a
    standard normal r (rows,), in float64; both sides are at least as long as the values."""

    singular_values: tuple[float, ...]
    more_rows: int = 0
    more_columns: int = 0
    seed: int = 0

    def __repr__(self) -> str:
        values = tuple(float(f"{value:.6g}") for value in self.singular_values)
        return f"Residuals({values}, {self.more_rows}, {self.more_columns}, seed={self.seed})"

    @cached_property
    def _parts(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        k = len(self.singular_values)
        rows, columns = k + self.more_rows, k + self.more_columns
        U, V = (
            torch.linalg.qr(torch.randn(size, k, generator=generator, dtype=torch.float64))[0]
            for size in (rows, columns)
        )
        J = (U * torch.tensor(self.singular_values, dtype=torch.float64)) @ V.mT
        return J, torch.randn(rows, generator=generator, dtype=torch.float64)

    @property
    def J(self) -> Tensor:
        return self._parts[0]

    @property
    def r(self) -> Tensor:
        return self._parts[1]

    def direction(self, damping: float) -> Tensor:
        """The solution of (JᵀJ + λI)s = Jᵀr in parameter space."""
        n = self.J.shape[1]
        normal = self.J.mT @ self.J + damping * torch.eye(n, dtype=torch.float64)
        s: Tensor = torch.linalg.solve(normal, self.J.mT @ self.r)
        return s
