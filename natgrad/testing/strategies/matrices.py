"""Dense symmetric matrices by their spectrum, for tests that need no more than a tensor."""

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
    """Symmetric positive definite matrices (n, n), eigenvalues log-uniform below a scale.

    Parameters
    ----------
    max_size
        Largest n.
    max_log10_condition
        Base-10 logarithm of the largest condition: eigenvalues go from scale / condition to scale.
    max_log10_scale
        Largest absolute value of the scale's base-10 logarithm, an integer. Raise it to try
        matrices in other units.
    dtypes
        The dtypes to draw from.
    """

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
    """Indefinite symmetric matrices (n, n): one eigenvalue is −1, the rest lie in [−1, 1].

    Parameters
    ----------
    max_size
        Largest n.
    dtypes
        The dtypes to draw from.
    """

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
    """A standard normal vector (n,) of a matrix's dtype.

    Parameters
    ----------
    matrix
        A tensor (n, ...), which gives n and the dtype.
    seed
        Seed of the vector.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(matrix), generator=generator, dtype=torch.float64).to(matrix.dtype)


def matrix_with_spectrum(
    eigenvalues: Tensor, *, seed: int, dtype: torch.dtype = torch.float64
) -> Tensor:
    """The symmetric matrix (n, n) of given eigenvalues in a random orthogonal basis.

    Parameters
    ----------
    eigenvalues
        A float64 tensor (n,).
    seed
        Seed of the basis.
    dtype
        Dtype to which the matrix, formed in float64, is rounded.
    """
    generator = torch.Generator().manual_seed(seed)
    n = len(eigenvalues)
    basis, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    matrix: Tensor = (basis * eigenvalues) @ basis.mT
    return (matrix + matrix.mT).div(2).to(dtype)
