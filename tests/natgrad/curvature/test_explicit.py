"""Explicit operators, and the randomised Nyström approximation."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from natgrad.curvature import Dense, Diagonal, FunctionOperator, Identity, LinearOperator, LowRank
from natgrad.testing.strategies import matrix_with_spectrum, spd_matrices, vectors_like

SEEDS = st.integers(0, 2**31 - 1)
DOUBLE = torch.float64


def generator(seed):
    return torch.Generator().manual_seed(seed)


@given(spd_matrices(dtypes=(DOUBLE,)), SEEDS)
def test_products_dense_forms_and_diagonals_agree(A, seed):
    eigenvalues, vectors = torch.linalg.eigh(A)
    d = vectors_like(A, seed=seed)
    V = torch.stack([d, d.flip(0)], dim=1)
    cases = [
        (Diagonal(d), d.diag()),
        (Identity(len(A), dtype=DOUBLE), torch.eye(len(A), dtype=DOUBLE)),
        (LowRank(vectors, eigenvalues), A),
        (Dense(A) - Diagonal(d), A - d.diag()),
        (-Dense(A), -A),
    ]
    for operator, matrix in cases:
        tolerance = 1e-12 * float(matrix.abs().max())
        assert torch.allclose(operator @ V, matrix @ V, rtol=1e-12, atol=tolerance * len(A))
        assert torch.allclose(operator.to_dense(), matrix, rtol=1e-12, atol=tolerance)
        assert torch.allclose(operator.diagonal(), matrix.diagonal(), rtol=1e-12, atol=tolerance)


def test_numpy_matrices_become_operators():
    array = np.array([[2.0, 1.0], [1.0, 3.0]])
    assert (LinearOperator.from_dense(array) @ torch.ones(2, dtype=DOUBLE)).tolist() == [3.0, 4.0]


@given(st.integers(1, 6), st.integers(7, 20), st.sampled_from([DOUBLE, torch.float32]), SEEDS)
def test_nystrom_is_exact_where_the_rank_suffices(rank, n, dtype, seed):
    spectrum = torch.zeros(n, dtype=DOUBLE)
    spectrum[:rank] = torch.logspace(0, -1, rank, dtype=DOUBLE)
    A = matrix_with_spectrum(spectrum, seed=seed, dtype=dtype)
    operator = Dense(A)
    approximation = LowRank.nystrom(operator, rank + 1, generator=generator(seed))
    assert operator.products == rank + 1
    # Half the digits at worst, where the core ΩᵀAΩ of an unlucky Ω is ill conditioned.
    assert (approximation.to_dense() - A).norm() <= torch.finfo(dtype).eps ** 0.5 * n


@given(spd_matrices(max_size=20, max_log10_condition=6, dtypes=(DOUBLE,)), SEEDS)
def test_nystrom_stays_below_the_matrix_and_near_its_best_approximation(A, seed):
    rank = max(1, len(A) // 2)
    approximation = LowRank.nystrom(Dense(A), rank, generator=generator(seed)).to_dense()
    below = torch.linalg.eigvalsh(A - approximation)
    assert below[0] >= -1e-7
    eigenvalues = torch.linalg.eigvalsh(A)
    if rank > 3:  # E‖A − Â‖ <= (1 + k/(p−1)) λ + ..., with room for luck: Halko et al., 2011
        best = eigenvalues[: len(A) - rank // 2].sum()
        assert torch.linalg.matrix_norm(A - approximation, ord=2) <= 10 * best


def test_nystrom_of_zero_is_zero_and_scale_is_kept():
    zero = LowRank.nystrom(Diagonal(torch.zeros(4)), 2, generator=generator(0))
    assert not zero.to_dense().any()
    A = matrix_with_spectrum(torch.logspace(0, -4, 8, dtype=DOUBLE), seed=1)
    plain = LowRank.nystrom(Dense(A), 4, generator=generator(0)).to_dense()
    for scale in (2.0**-200, 2.0**200):
        scaled = LowRank.nystrom(Dense(scale * A), 4, generator=generator(0)).to_dense()
        assert torch.allclose(scaled / scale, plain, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Diagonal(torch.ones(2, 2)), ValueError, r"\(n,\), got shape \(2, 2\)"),
        (lambda: Diagonal(torch.ones(2).long()), TypeError, "int64"),
        (lambda: Identity(-1), ValueError, "got -1"),
        (lambda: LowRank(torch.eye(3), torch.ones(2)), ValueError, "expected vectors"),
        (lambda: LowRank(torch.ones(3, 1), torch.ones(1)), ValueError, "orthonormal"),
        (lambda: LowRank(torch.eye(2), torch.tensor([1.0, -1.0])), ValueError, ">= 0"),
        (lambda: LowRank.nystrom(Identity(3), 4, generator=generator(0)), ValueError, "1 … 3"),
        (
            lambda: LowRank.nystrom(-Identity(3), 2, generator=generator(0)),
            ValueError,
            "not positive semidefinite",
        ),
        (
            lambda: LowRank.nystrom(
                FunctionOperator(lambda v: v * torch.nan, 3), 2, generator=generator(0)
            ),
            ValueError,
            "not finite",
        ),
        (lambda: LinearOperator.from_dense(np.ones((2, 3))), ValueError, "square"),
    ],
)
def test_errors_say_what_came_and_what_was_wanted(make, error, message):
    with pytest.raises(error, match=message):
        make()
