"""Hypothesis strategies that build from a spectrum and a seed, not entry by entry.

So a counterexample shrinks to a small, well-conditioned case of unit scale: sizes, conditions,
scales and seeds all shrink to the simplest, and what is left is what matters.
"""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from natgrad.testing.cases.distribution import DistributionCase
from natgrad.testing.cases.matrix import MatrixOperator
from natgrad.testing.cases.network import NetworkCase
from natgrad.testing.cases.objective import Objective
from natgrad.testing.cases.ray import Ray
from natgrad.testing.cases.residuals import Residuals
from natgrad.testing.cases.rollout import Rollout
from natgrad.testing.cases.system import System
from natgrad.testing.likelihoods import COMMON, FAMILIES

DTYPES = (torch.float64, torch.float32)
SEEDS = st.integers(0, 2**20)
PLAIN = ("mlp", "convolution", "tokens")
CHUNKS = (None, 3, 1, 2, 100)


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
        min_size=min_size,
        max_size=max_size,
        max_log10_condition=max_log10_condition,
        negative=negative,
        zero=zero,
        max_distinct=max_distinct,
    )
    return st.builds(System, eigenvalues, SEEDS, dtype=st.sampled_from(dtypes))


def residuals(
    *, max_rank: int = 6, max_log10_condition: float = 2.0
) -> st.SearchStrategy[Residuals]:
    """J s ≈ r, singular values of J from :func:`spectra`; more rows, more columns, or both."""
    values = spectra(max_size=max_rank, max_log10_condition=max_log10_condition)
    return st.builds(Residuals, values, st.integers(0, 6), st.integers(0, 6), SEEDS)


def objectives(
    kinds: tuple[str, ...] = ("quadratic",),
    *,
    max_size: int = 6,
    max_log10_condition: float = 2.0,
    max_digits: int = 0,
    zero: bool = False,
    at_minimum: bool = False,
) -> st.SearchStrategy[Objective]:
    """Functions of a vector, of these kinds, in units of 1 to 10^−``max_digits``; eigenvalues of
    the quadratic ones from :func:`spectra`, ``zero`` among them or not."""
    values = spectra(max_size=max_size, max_log10_condition=max_log10_condition, zero=zero)

    def build(kind: str, values: tuple[float, ...], seed: int, digits: int) -> Objective:
        given = (values, seed) if kind == "quadratic" else ((1.0,), 0)
        return Objective(kind, *given, scale=10.0**-digits, at_minimum=at_minimum)

    return st.builds(build, st.sampled_from(kinds), values, SEEDS, st.integers(0, max_digits))


LENGTHS = (1.0, 0.1, 0.01, 1e-3, 3.0, 30.0)


def rays(
    *, lengths: tuple[float, ...] = LENGTHS, max_log10_condition: float = 2.0
) -> st.SearchStrategy[Ray]:
    """Convex functions along −length times their gradient."""
    curvatures = spectra(max_size=4, max_log10_condition=max_log10_condition)
    return st.builds(Ray, curvatures, st.sampled_from(lengths), SEEDS)


def rollouts(*, max_steps: int = 8) -> st.SearchStrategy[Rollout]:
    """Up to so many steps, each of which may end an episode by termination or truncation."""
    return st.builds(Rollout, st.text(".x|", min_size=1, max_size=max_steps), SEEDS)


def symmetric_systems(
    *,
    max_size: int = 12,
    max_log10_condition: float = 3.0,
    semidefinite: bool = False,
    dtypes: tuple[torch.dtype, ...] = (torch.float64,),
) -> st.SearchStrategy[System]:
    """Systems with singular A among them, and indefinite ones unless ``semidefinite``."""

    def of(negative: bool, zero: bool) -> st.SearchStrategy[System]:
        return systems(
            max_size=max_size,
            max_log10_condition=max_log10_condition,
            negative=negative,
            zero=zero,
            dtypes=dtypes,
        )

    found = [of(False, False), of(False, True)]
    found += [] if semidefinite else [of(True, False)]
    return st.one_of(found)


def operators(
    *,
    max_size: int = 12,
    max_log10_condition: float = 3.0,
    semidefinite: bool = False,
    dtypes: tuple[torch.dtype, ...] = (torch.float64,),
) -> st.SearchStrategy[MatrixOperator]:
    """The matrices of :func:`symmetric_systems` behind ``A @ v``."""
    found = symmetric_systems(
        max_size=max_size,
        max_log10_condition=max_log10_condition,
        semidefinite=semidefinite,
        dtypes=dtypes,
    )
    return st.builds(MatrixOperator, found)


def distributions(
    families: tuple[str, ...] = tuple(FAMILIES), *, max_batch: int = 5
) -> st.SearchStrategy[DistributionCase]:
    """Distributions of every family, whose parameters are functions of outputs (N, 3)."""
    batch = st.integers(1, max_batch)
    return st.builds(DistributionCase, st.sampled_from(families), batch, SEEDS)


def networks(
    kinds: tuple[str, ...] = PLAIN,
    families: tuple[str, ...] = COMMON,
    *,
    chunks: bool = False,
    rows: tuple[int, ...] | None = None,
    dtypes: tuple[torch.dtype, ...] = (torch.float64,),
) -> st.SearchStrategy[NetworkCase]:
    """Small networks with data, of these kinds and families; in chunks, where they may be."""
    return st.builds(
        NetworkCase,
        st.sampled_from(kinds),
        st.sampled_from(families),
        SEEDS,
        rows=st.just(rows),
        chunk_size=st.sampled_from(CHUNKS if chunks else (None,)),
        dtype=st.sampled_from(dtypes),
    )


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
