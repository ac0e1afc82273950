"""Hypothesis strategies that build matrices from a spectrum and a seed, not entry by entry.

So a counterexample shrinks to a small, well-conditioned matrix of unit scale.
"""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = (torch.float64, torch.float32)


def spd_matrices(
    *,
    max_size: int = 30,
    max_log10_condition: float = 3.0,
    max_log10_scale: int = 0,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
) -> st.SearchStrategy[Tensor]:
    """Symmetric positive definite matrices (n, n), eigenvalues log-uniform from scale / condition
    to scale; the scale is 10 to an integer of absolute value at most ``max_log10_scale``."""

    def build(n: int, condition: float, scale: int, seed: int, dtype: torch.dtype) -> Tensor:
        eigenvalues = torch.logspace(0, -condition, n, dtype=torch.float64)
        return matrix_with_spectrum(eigenvalues * 10.0**scale, seed=seed, dtype=dtype)

    return st.builds(
        build,
        st.integers(1, max_size),
        st.floats(0, max_log10_condition),
        st.integers(-max_log10_scale, max_log10_scale),
        st.integers(0, 2**31 - 1),
        st.sampled_from(dtypes),
    )


def symmetric_matrices(
    *, max_size: int = 30, dtypes: tuple[torch.dtype, ...] = DTYPES
) -> st.SearchStrategy[Tensor]:
    """Indefinite symmetric matrices (n, n): at least one eigenvalue is −1, the rest in [−1, 1]."""

    def build(spectrum: list[float], seed: int, dtype: torch.dtype) -> Tensor:
        eigenvalues = torch.tensor([-1.0, *spectrum], dtype=torch.float64)
        return matrix_with_spectrum(eigenvalues, seed=seed, dtype=dtype)

    return st.builds(
        build,
        st.lists(st.floats(-1, 1), max_size=max_size - 1),
        st.integers(0, 2**31 - 1),
        st.sampled_from(dtypes),
    )


def vectors_like(matrix: Tensor, *, seed: int) -> Tensor:
    """A standard normal vector (n,) of the matrix's dtype."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(matrix), generator=generator, dtype=torch.float64).to(matrix.dtype)


def matrix_with_spectrum(
    eigenvalues: Tensor, *, seed: int, dtype: torch.dtype = torch.float64
) -> Tensor:
    """The symmetric matrix (n, n) of float64 eigenvalues (n,) in a random orthogonal basis."""
    generator = torch.Generator().manual_seed(seed)
    n = len(eigenvalues)
    basis, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    matrix: Tensor = (basis * eigenvalues) @ basis.mT
    return (matrix + matrix.mT).div(2).to(dtype)
