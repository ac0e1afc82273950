"""Rows and columns of an operator for some of its coordinates."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from natgrad.curvature import Dense, Fisher, Submatrix
from natgrad.solvers import Status, cg
from natgrad.testing.networks import categorical, make_network
from natgrad.testing.strategies import spd_matrices, symmetric_matrices, vectors_like

SEEDS = st.integers(0, 2**31 - 1)


def mask(n, seed):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed)) < 0.5


@settings(max_examples=40)
@given(symmetric_matrices(max_size=12), SEEDS)
def test_it_is_what_is_left_of_the_matrix(A, seed):
    kept = mask(len(A), seed)
    operator = Submatrix(Dense(A), kept)
    expected = A[kept][:, kept]
    assert operator.shape == expected.shape
    assert (operator.dtype, operator.device) == (A.dtype, A.device)
    assert torch.equal(operator.to_dense(), expected)
    v = vectors_like(A, seed=seed)[kept]
    close: dict[str, Any] = {"rtol": 0.0, "atol": 8 * len(A) * torch.finfo(A.dtype).eps}
    torch.testing.assert_close(operator @ v, expected @ v, **close)
    torch.testing.assert_close(
        operator @ torch.stack([v, -v], 1), expected @ torch.stack([v, -v], 1), **close
    )
    torch.testing.assert_close(operator.damped(0.5) @ v, expected @ v + 0.5 * v, **close)


@settings(max_examples=20)
@given(spd_matrices(max_size=12, dtypes=(torch.float64,)), SEEDS)
def test_a_solve_with_it_leaves_the_other_coordinates_at_zero(A, seed):
    """Of xᵀA x / 2 − bᵀx over the vectors that are zero elsewhere, it finds the minimum."""
    kept, b = mask(len(A), seed), vectors_like(A, seed=seed)
    s = cg(Submatrix(Dense(A), kept), b[kept], rtol=1e-10)
    if not kept.any():
        assert s.status is Status.ZERO_RHS
        return
    x = torch.zeros_like(b)
    x[kept] = s.x
    assert float((A @ x - b)[kept].norm()) <= 1e-9 * float(b[kept].norm())
    # Interlacing: no eigenvalue of a principal submatrix is outside those of the matrix.
    eigenvalues = torch.linalg.eigvalsh(Submatrix(Dense(A), kept).to_dense())
    bounds = torch.linalg.eigvalsh(A)
    assert bounds[0] - 1e-12 <= eigenvalues[0] <= eigenvalues[-1] <= bounds[-1] + 1e-12


def test_a_product_costs_one_of_the_whole():
    whole = Dense(torch.eye(3))
    operator = Submatrix(whole, torch.tensor([True, False, True]))
    operator @ torch.ones(2)
    operator @ torch.ones(2, 4)
    assert (operator.products, whole.products) == (5, 5)


def test_all_and_none():
    A = torch.tensor([[1.0, 2.0], [2.0, 5.0]])
    assert torch.equal(Submatrix(Dense(A), torch.ones(2, dtype=torch.bool)).to_dense(), A)
    nothing = Submatrix(Dense(A), torch.zeros(2, dtype=torch.bool))
    assert nothing.shape == (0, 0)
    assert (nothing @ torch.zeros(0)).shape == (0,)


def test_of_a_fisher_matrix_it_is_that_of_the_parameters_kept(generator):
    network, x = make_network("mlp", generator)
    parameters = list(network.parameters())
    whole = Fisher(categorical(network), parameters, data=x)
    kept = torch.cat([torch.full((p.numel(),), p.ndim == 2) for p in parameters])
    weights = Fisher(categorical(network), [p for p in parameters if p.ndim == 2], data=x)
    found, expected = Submatrix(whole, kept).to_dense(), weights.to_dense()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (torch.ones(3, dtype=torch.bool), r"\(2,\), got \(3,\) of torch.bool"),
        (torch.ones(2), r"\(2,\), got \(2,\) of torch.float32"),
        (torch.ones(2, 2, dtype=torch.bool), r"got \(2, 2\)"),
    ],
)
def test_a_mask_of_another_kind_is_refused(kept, message):
    with pytest.raises(ValueError, match=message):
        Submatrix(Dense(torch.eye(2)), kept)


def test_a_vector_of_the_whole_is_refused():
    with pytest.raises(ValueError, match=r"\(1,\) or \(1, k\), got \(2,\)"):
        Submatrix(Dense(torch.eye(2)), torch.tensor([True, False])) @ torch.ones(2)
