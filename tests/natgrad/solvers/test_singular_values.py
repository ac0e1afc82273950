"""Singular values of small rows and columns: closed forms, exact powers of two, and LAPACK."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import mpmath
import pytest
import torch
from scipy.linalg import lapack
from torch import Tensor

from natgrad.solvers import singular_values as module
from natgrad.solvers.singular_values import EPS, _jacobi, _ratio, norms, singular_values

DOUBLE = torch.float64


def random_(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=DOUBLE)


def exact(J: Tensor) -> list[float]:
    """The singular values, in 80 digits."""
    with mpmath.workdps(80):
        found = mpmath.svd_r(mpmath.matrix(J.tolist()), compute_uv=False)
        return sorted((float(value) for value in found), reverse=True)


def relative_error(values: Tensor, expected: list[float]) -> float:
    wanted = torch.tensor(expected, dtype=DOUBLE)
    return float(((values - wanted) / wanted).abs().amax())


def graded(rows: list[float], columns: list[float], seed: int = 0) -> Tensor:
    """D₁ B D₂ of diagonal D₁, D₂ and a B whose rows are nearly orthogonal."""
    B, (m, n) = random_(len(rows), len(columns), seed=seed), (len(rows), len(columns))
    left, _, right = torch.linalg.svd(B + torch.eye(m, n, dtype=DOUBLE), full_matrices=False)
    of_rows, of_columns = (torch.tensor(sizes, dtype=DOUBLE) for sizes in (rows, columns))
    return of_rows[:, None] * (left @ right) * of_columns


# Norms.


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("power", [0, 300, -300, 700, -700, 1000, -1000])
def test_norms_are_free_of_scale(dim: int, power: int) -> None:
    """A power of two changes no bit, though squares leave the range."""
    matrix = random_(5, 3)
    expected = torch.linalg.vector_norm(matrix, dim=dim)
    found = norms(matrix * 2.0**power, dim)
    assert found.shape == expected.shape
    torch.testing.assert_close(found / 2.0**power, expected, rtol=4 * EPS, atol=0.0)


@pytest.mark.parametrize("dim", [0, 1])
def test_norms_of_unlike_columns_are_those_of_each_alone(dim: int) -> None:
    base = random_(4, 5)
    sizes = torch.tensor([1e-200, 1.0, 0.0, 1e200, 1e-300], dtype=DOUBLE)
    matrix = base * sizes if dim == 0 else (base * sizes).mT
    scaled = [[float(entry / (size or 1.0)) for entry in column] for column, size in
              zip((base * sizes).mT, sizes, strict=True)]  # fmt: skip
    expected = [
        math.sqrt(math.fsum(x * x for x in column)) * float(size)
        for column, size in zip(scaled, sizes, strict=True)
    ]
    wanted = torch.tensor(expected, dtype=DOUBLE)
    torch.testing.assert_close(norms(matrix, dim), wanted, rtol=8 * EPS, atol=0.0)


def test_norms_keep_what_is_not_finite() -> None:
    matrix = torch.tensor([[3.0, math.inf, 0.0], [4.0, 1.0, math.nan]], dtype=DOUBLE)
    found = norms(matrix, 0)
    assert (float(found[0]), float(found[1])) == (5.0, math.inf)
    assert math.isnan(float(found[2]))


@pytest.mark.parametrize(
    ("sizes", "ratio"),
    [([1.0, 1.0], 1.0), ([0.0, 0.0], 1.0), ([0.0, 8.0, 2.0], 4.0), ([1.5, 1.0], 1.5), ([3.0], 1.0)],
)
def test_the_ratio_leaves_zeros_out(sizes: list[float], ratio: float) -> None:
    assert _ratio(torch.tensor(sizes, dtype=DOUBLE)) == ratio


# LAPACK's rotations.


def fake(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> list[Any]:
    """LAPACK, with some of what dgejsv returns replaced; the matrices that it is given."""
    given: list[Any] = []

    def dgejsv(matrix: Any, **settings: Any) -> tuple[Any, ...]:
        given.append(matrix)
        names = ("values", "left", "right", "work", "iwork", "info")
        found = dict(zip(names, lapack.dgejsv(matrix, **settings), strict=True)) | changes
        return tuple(found[name] for name in names)

    monkeypatch.setattr(module, "lapack", SimpleNamespace(dgejsv=dgejsv))
    return given


@pytest.mark.parametrize("shape", [(6, 4), (4, 4), (4, 6), (1, 3), (3, 1)], ids=str)
def test_rotations_decompose_the_matrix(shape: tuple[int, int]) -> None:
    J, k = random_(*shape), min(shape)
    left, values, right = _jacobi(J)
    assert (left.shape, values.shape, right.shape) == ((shape[0], k), (k,), (k, shape[1]))
    torch.testing.assert_close((left * values) @ right, J, rtol=0.0, atol=1e-13)
    eye = torch.eye(k, dtype=DOUBLE)
    torch.testing.assert_close(left.mT @ left, eye, rtol=0.0, atol=1e-13)
    torch.testing.assert_close(right @ right.mT, eye, rtol=0.0, atol=1e-13)
    assert bool((values.diff() <= 0).all())


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)], ids=str)
def test_rotations_that_do_not_end_leave_it_to_the_common_algorithm(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    J = random_(*shape)
    fake(monkeypatch, info=1, values=None, left=None, right=None)
    left, values, right = _jacobi(J)
    torch.testing.assert_close(values, torch.linalg.svdvals(J), rtol=1e-13, atol=0.0)
    assert (left.shape, right.shape) == ((shape[0], 4), (4, shape[1]))
    torch.testing.assert_close((left * values) @ right, J, rtol=0.0, atol=1e-13)


@pytest.mark.parametrize(("work", "factor"), [((6.0, 3.0), 2.0), ((1.0, 4.0), 0.25)], ids=str)
def test_values_are_in_the_scale_that_lapack_names(
    work: tuple[float, float], factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    J = random_(4, 3)
    _, plain, _ = _jacobi(J)
    fake(monkeypatch, work=(*work, 0.0, 0.0, 0.0, 0.0, 0.0))
    assert torch.equal(_jacobi(J)[1], factor * plain)


@pytest.mark.parametrize("shape", [(12, 3), (5, 5), (3, 12)], ids=str)
def test_rotations_are_taken_only_where_norms_differ(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take ten times as long."""
    given, J = fake(monkeypatch), random_(*shape)
    singular_values(J, EPS)
    assert len(given) == 0
    J[:, 0] *= 1e-14
    singular_values(J, EPS)
    assert len(given) == 1


# What small columns and rows keep.


def test_a_column_that_the_common_algorithm_would_leave_two_digits_keeps_all() -> None:
    J = graded([1.0] * 4, [1.0, 1.0, 1.0, 2e-13])
    found, expected = singular_values(J, 0.0).values, exact(J)
    assert relative_error(found, expected) <= 1e-12


def test_an_entry_small_in_row_and_column_keeps_its_digits() -> None:
    sizes = [1.0, 1.0, 1.0, 8e-8]
    J = graded(sizes, sizes)
    found, expected = singular_values(J, 0.0).values, exact(J)
    assert relative_error(found, expected) <= 1e-12


@pytest.mark.parametrize("transposed", [False, True])
def test_small_rows_and_columns_of_a_wide_matrix_keep_their_values(transposed: bool) -> None:
    J = graded([1.0, 1e-17], [1.0, 1.0, 1.0, 1e-8])
    found, expected = singular_values(J.mT if transposed else J, EPS).values, exact(J)
    assert relative_error(found, expected) <= 1e-12


def test_a_value_far_above_the_error_of_a_tall_matrix_is_kept() -> None:
    """That error grows with the root of the rows: σ₂ = 4 (n + √m) eps σ₁ is real."""
    m = 10_000
    sign = torch.ones(m, dtype=DOUBLE)
    sign[::2] = -1.0
    delta = 2.0**-42
    J = torch.stack([torch.ones(m, dtype=DOUBLE), 1 + delta * sign], dim=1)
    error = (2 + m**0.5) * EPS
    # The columns' sum and difference: σ₁² ≈ 2 m, σ₂² ≈ m δ² / 2, to second order in δ.
    expected = [(2 * m) ** 0.5, delta * (m / 2) ** 0.5]
    found = singular_values(J, EPS).values
    assert expected[1] > 4 * error * expected[0]
    assert float(found[1]) == pytest.approx(expected[1], abs=error * expected[0])


# What the rounding of entries explains.

BLOCK = 2**0.5  # the norms of the two columns of [[1, 1], [1, 1 + δ]], weighted by v of σ = δ / 2


def nearly_singular(m: int, n: int, sigma: float) -> Tensor:
    """(m, n) with σ_min = ``sigma`` of a 2 × 2 block, and an identity beside it."""
    J = torch.zeros(m, n, dtype=DOUBLE)
    J[range(m), range(m)] = 1.0
    J[0, 1] = J[1, 0] = 1.0
    J[1, 1] = 1 + 2 * sigma
    return J


@pytest.mark.parametrize(("m", "n"), [(8, 8), (8, 72), (4, 64)])
def test_a_value_is_zero_up_to_eps_times_the_columns_weighted_by_its_vector(m: int, n: int) -> None:
    """And in a wide matrix up to √(n / m) times as much."""
    eps = 1e-6
    bound = eps * (n / m) ** 0.5 * BLOCK
    above = singular_values(nearly_singular(m, n, 1.05 * bound), eps).values
    assert float(above[-1]) == pytest.approx(1.05 * bound, rel=1e-4, abs=0.0)
    below = singular_values(nearly_singular(m, n, 0.95 * bound), eps).values
    assert float(below[-1]) == 0.0
    assert torch.equal(below[:-1] > 0, torch.ones(m - 1, dtype=torch.bool))


def test_small_rows_are_known_to_their_own_rounding() -> None:
    """In float32, (1, 1) beside r (1, −1): σ₂ = r √2 is below eps ‖J‖, and exact."""
    J = torch.tensor([[1.0, 1.0, 0.0], [1e-8, -1e-8, 0.0]], dtype=DOUBLE)
    found = singular_values(J, torch.finfo(torch.float32).eps).values
    assert relative_error(found, [2**0.5, 1e-8 * 2**0.5]) <= 1e-6


def test_an_entry_small_in_row_and_column_is_known_to_its_own_rounding() -> None:
    """In float32: σ₂ ≈ 2 · 10⁻¹⁶ is below the rounding of the second row, but not of its entry."""
    J = torch.tensor([[1.0, 1e-8], [1e-8, -1e-16]], dtype=DOUBLE)
    found = singular_values(J, torch.finfo(torch.float32).eps).values
    assert relative_error(found, exact(J)) <= 1e-7


def small_rows(r: float, delta: float, m: int) -> Tensor:
    """(1, 1, 1), r b and r (b + δ c) for orthonormal b and c, and rows of zeros: σ₃ ≈ r δ / √2."""
    b = torch.tensor([1.0, -1.0, 0.0], dtype=DOUBLE) / 2**0.5
    c = torch.tensor([1.0, 1.0, -2.0], dtype=DOUBLE) / 6**0.5
    rows = torch.stack([torch.ones(3, dtype=DOUBLE), r * b, r * (b + delta * c)])
    return torch.cat([rows, torch.zeros(m - 3, 3, dtype=DOUBLE)])


@pytest.mark.parametrize("r", [1e-4, 1e-7])
def test_a_value_is_zero_up_to_eps_times_the_entries_weighted_by_its_vectors(r: float) -> None:
    """√m (Σ uᵢ² Jᵢⱼ² vⱼ²)^½, with u = (0, 1, −1) / √2 and v = c here: r √(m / 6). The same whether
    σ₂ = r √2 is above the rounding of the columns or not."""
    eps, m = 1e-6, 64
    bound = eps * r * (m / 6) ** 0.5
    above = singular_values(small_rows(r, 1.3 * bound * 2**0.5 / r, m), eps).values
    assert float(above[2]) == pytest.approx(1.3 * bound, rel=0.05, abs=0.0)
    below = singular_values(small_rows(r, 0.8 * bound * 2**0.5 / r, m), eps).values
    assert float(below[2]) == 0.0
    assert float(below[1]) == pytest.approx(r * 2**0.5, rel=1e-3, abs=0.0)
