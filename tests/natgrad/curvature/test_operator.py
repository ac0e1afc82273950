import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st

from natgrad.curvature import Dense, FunctionOperator, LinearOperator
from natgrad.testing.strategies import symmetric_matrices, vectors_like


@given(symmetric_matrices(max_size=8), st.integers(0, 99))
def test_algebra_equals_the_algebra_of_matrices(matrix, seed):
    A, B = Dense(matrix), Dense(matrix @ matrix)
    v = vectors_like(matrix, seed=seed)
    tolerance = 50 * torch.finfo(matrix.dtype).eps * len(matrix)
    expected = 2 * (matrix @ v) - 0.5 * (matrix @ (matrix @ v)) + 3 * v
    actual = (2 * A + B * -0.5).damped(3) @ v
    assert torch.allclose(actual, expected, rtol=0, atol=tolerance * float(v.norm()))


@given(symmetric_matrices(max_size=8), st.integers(0, 4))
def test_a_matrix_of_vectors_is_column_by_column_and_counts_its_columns(matrix, k):
    A = FunctionOperator(lambda v: matrix @ v, len(matrix), dtype=matrix.dtype)
    V = torch.ones(len(matrix), k, dtype=matrix.dtype)
    product = A @ V
    assert product.shape == V.shape
    assert A.products == k
    for column in range(k):
        assert torch.equal(product[:, column], matrix @ V[:, column].contiguous())


@given(symmetric_matrices(max_size=8))
def test_dense_diagonal_and_scipy_views_agree(matrix):
    A = Dense(matrix)
    assert torch.equal(A.to_dense(), matrix)
    assert torch.equal(A.diagonal(), matrix.diagonal())
    there = A.to_scipy()
    assert there.dtype == matrix.numpy().dtype
    ones = np.ones(len(matrix), dtype=there.dtype)
    assert np.array_equal(there @ ones, (matrix @ torch.from_numpy(ones)).numpy())
    back = LinearOperator.from_scipy(there)
    assert back.dtype == matrix.dtype
    assert torch.allclose(back.to_dense(), matrix)


def test_from_scipy_takes_sparse_matrices():
    sparse = scipy.sparse.diags_array([1.0, 2.0, 3.0])
    assert torch.equal(
        LinearOperator.from_scipy(sparse).to_dense(), torch.diag(torch.tensor([1.0, 2, 3]).double())
    )


def test_products_are_counted_in_every_layer():
    A = Dense(torch.eye(3))
    damped = A.damped(1.0)
    damped @ torch.ones(3)
    damped @ torch.ones(3, 2)
    assert (A.products, damped.products) == (3, 3)


def test_results_carry_no_graph():
    v = torch.ones(3, requires_grad=True)
    assert not (Dense(torch.eye(3)) @ v).requires_grad


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda A: A @ np.ones(3), TypeError, "to_scipy"),
        (lambda A: A @ torch.ones(4), ValueError, r"\(3, 3\).*got \(4,\)"),
        (lambda A: A @ torch.ones(3, 1, 1), ValueError, "got"),
        (lambda A: A @ torch.ones(3).double(), ValueError, "convert the vector"),
        (lambda A: A.damped(-0.1), ValueError, "damping must be finite and >= 0, got -0.1"),
        (lambda A: A.damped(float("nan")), ValueError, "got nan"),
        (lambda A: float("inf") * A, ValueError, "finite"),
        (lambda A: A + Dense(torch.eye(4)), ValueError, "must agree"),
        (lambda A: A + 1, TypeError, "unsupported"),
        (lambda A: Dense(torch.ones(2, 3)), ValueError, "square"),
        (lambda A: Dense(torch.eye(2).long()), TypeError, "floating-point"),
        (lambda A: Dense(torch.tensor([[1.0, 1], [0, 1]])), ValueError, "symmetric"),
        (lambda A: Dense(torch.tensor([[0.0, 1e-30], [0, 0]])), ValueError, "symmetric"),
        (lambda A: Dense(torch.tensor([[0.0, 1e30], [0, 0]])), ValueError, "symmetric"),
    ],
)
def test_errors_say_what_came_and_what_was_wanted(call, error, message):
    with pytest.raises(error, match=message):
        call(Dense(torch.eye(3)))


def test_a_function_that_changes_the_shape_is_named():
    A = FunctionOperator(lambda v: v[:2], 3)
    with pytest.raises(ValueError, match="square operator keeps both"):
        A @ torch.ones(3)
