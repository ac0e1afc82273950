"""A linear least-squares problem from singular values and a seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Residuals:
    """J s ≈ r with J between random orthonormal bases and r standard normal, in float64.

    Attributes
    ----------
    singular_values
        The k nonzero singular values of J.
    more_rows
        J and r have k + ``more_rows`` rows.
    more_columns
        J has k + ``more_columns`` columns.
    seed
        Seed of the bases and r.
    """

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
        """J (m, n)."""
        return self._parts[0]

    @property
    def r(self) -> Tensor:
        """r (m,)."""
        return self._parts[1]

    def direction(self, damping: float) -> Tensor:
        """The solution s (n,) of (JᵀJ + λI)s = Jᵀr, solved in parameter space.

        Parameters
        ----------
        damping
            λ > 0.
        """
        n = self.J.shape[1]
        normal = self.J.mT @ self.J + damping * torch.eye(n, dtype=torch.float64)
        s: Tensor = torch.linalg.solve(normal, self.J.mT @ self.r)
        return s
