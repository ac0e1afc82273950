"""Hypothesis strategies that build from a spectrum and a seed, not entry by entry.

So a counterexample shrinks to a small, well-conditioned case of unit scale: sizes, conditions,
scales and seeds all shrink to the simplest, and what is left is what matters.
"""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from natgrad.testing.cases.system import System

DTYPES = (torch.float64, torch.float32)
SEEDS = st.integers(0, 2**20)


def spectra(
    *,
    min_size: int = 1,
    max_size: int = 30,
    max_log10_condition: float = 3.0,
    negative: bool = False,
    zero: bool = False,
    max_distinct: int | None = None,
) -> st.SearchStrategy[tuple[float, ...]]:
    """Eigenvalues of absolute value 10^−c, c a multiple of a quarter in [0, condition].

    ``negative`` makes at least one of them negative, ``zero`` at least one zero, ``max_distinct``
    clusters them: so many different ones at most, each repeated.
    """

    def build(sizes: list[int], order: list[int], signs: list[bool]) -> tuple[float, ...]:
        values = [10.0 ** (-size / 4) for size in sizes]
        if max_distinct is not None:
            values = [values[index % len(values)] for index in order]
        found = [
            -value if flip else value
            for value, flip in zip(values, [*signs, *[False] * len(values)], strict=False)
        ]
        return (*([-1.0] if negative else []), *([0.0] if zero else []), *found)

    quarters = st.integers(0, int(4 * max_log10_condition))
    extra = negative + zero
    least, most = max(min_size - extra, 0), max_size - extra
    sizes = st.lists(quarters, min_size=least, max_size=most)
    if max_distinct is not None:
        sizes = st.lists(quarters, min_size=1, max_size=max_distinct, unique=True)
    elif not extra:
        sizes = st.lists(quarters, min_size=max(least, 1), max_size=most)
    order = st.lists(st.integers(0, 30), min_size=max(least, 1), max_size=most)
    signs = st.lists(st.booleans(), max_size=most) if negative else st.just([])
    return st.builds(build, sizes, order, signs)


def systems(
    *,
    min_size: int = 1,
    max_size: int = 30,
    max_log10_condition: float = 3.0,
    negative: bool = False,
    zero: bool = False,
    max_distinct: int | None = None,
    dtypes: tuple[torch.dtype, ...] = (torch.float64,),
) -> st.SearchStrategy[System]:
    """A x = b with eigenvalues of A from :func:`spectra`, of unit scale."""
    eigenvalues = spectra(
        min_size=min_size, max_size=max_size, max_log10_condition=max_log10_condition,
        negative=negative, zero=zero, max_distinct=max_distinct,
    )  # fmt: skip
    return st.builds(System, eigenvalues, SEEDS, dtype=st.sampled_from(dtypes))


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
