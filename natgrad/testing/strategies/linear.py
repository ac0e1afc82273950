"""Strategies for linear problems: spectra, linear systems, operators and linear least squares."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from natgrad.testing.cases.matrix import MatrixOperator
from natgrad.testing.cases.residuals import Residuals
from natgrad.testing.cases.system import System

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
    """Eigenvalues of absolute value 10^−c, c a multiple of 1/4 from 0 to ``max_log10_condition``.

    Parameters
    ----------
    min_size, max_size
        Least and largest number of eigenvalues. Raise the first where small cases are trivial.
    max_log10_condition
        Base-10 logarithm of the largest condition. Lower it for methods that lose digits.
    negative
        Whether at least one eigenvalue is negative. Set it for indefinite problems.
    zero
        Whether at least one eigenvalue is zero. Set it for singular problems.
    max_distinct
        Largest number of distinct eigenvalues, each of which may repeat; None leaves it open. Set
        it where the iterations of a Krylov method must be few.
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
    """Systems A x = b of unit scale.

    Parameters
    ----------
    min_size, max_size, max_log10_condition, negative, zero, max_distinct
        The eigenvalues of A, as in :func:`spectra`.
    dtypes
        The dtypes to draw from. Name several where a property holds in each of them.
    """
    eigenvalues = spectra(
        min_size=min_size,
        max_size=max_size,
        max_log10_condition=max_log10_condition,
        negative=negative,
        zero=zero,
        max_distinct=max_distinct,
    )
    return st.builds(System, eigenvalues, SEEDS, dtype=st.sampled_from(dtypes))


def symmetric_systems(
    *,
    max_size: int = 12,
    max_log10_condition: float = 3.0,
    semidefinite: bool = False,
    dtypes: tuple[torch.dtype, ...] = (torch.float64,),
) -> st.SearchStrategy[System]:
    """Systems whose A may be singular or indefinite.

    Parameters
    ----------
    max_size
        Largest number of eigenvalues.
    max_log10_condition
        Base-10 logarithm of the largest condition, zero eigenvalues apart.
    semidefinite
        Whether to leave out indefinite A.
    dtypes
        The dtypes to draw from.
    """

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
    """The matrices of :func:`symmetric_systems`, known by their products ``A @ v``.

    Parameters
    ----------
    max_size, max_log10_condition, semidefinite, dtypes
        As in :func:`symmetric_systems`.
    """
    found = symmetric_systems(
        max_size=max_size,
        max_log10_condition=max_log10_condition,
        semidefinite=semidefinite,
        dtypes=dtypes,
    )
    return st.builds(MatrixOperator, found)


def residuals(
    *, max_rank: int = 6, max_log10_condition: float = 2.0
) -> st.SearchStrategy[Residuals]:
    """Least-squares problems J s ≈ r, with J square, tall, wide or short of rank.

    Parameters
    ----------
    max_rank
        Largest number of singular values of J; each side of J is up to 6 longer.
    max_log10_condition
        Base-10 logarithm of the largest ratio of singular values.
    """
    values = spectra(max_size=max_rank, max_log10_condition=max_log10_condition)
    return st.builds(Residuals, values, st.integers(0, 6), st.integers(0, 6), SEEDS)
