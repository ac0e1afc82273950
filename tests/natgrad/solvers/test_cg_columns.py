"""Conjugate gradients for the columns of a matrix: as a loop over them, at one product a round."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from natgrad.solvers import Status, cg
from natgrad.solvers.preconditioners import jacobi
from natgrad.testing.strategies import matrix_with_spectrum, spd_matrices, vectors_like

SEEDS = st.integers(0, 2**31 - 1)
NAN = float("nan")


def right_hand_sides(A, seed, k):
    return torch.stack([vectors_like(A, seed=seed + column) for column in range(k)], dim=1)


class Counted:
    """A matrix that keeps the number of columns of each product."""

    def __init__(self, A):
        self.A, self.shape, self.device, self.widths = A, A.shape, A.device, []

    def __matmul__(self, v):
        self.widths.append(v.shape[1] if v.ndim == 2 else None)
        return self.A @ v


@given(
    spd_matrices(max_log10_condition=2, dtypes=(torch.float64,)),
    SEEDS,
    st.integers(1, 5),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1, 3]),
)
def test_columns_are_the_loop_over_them(A, seed, k, started, preconditioned, check_every):
    B = right_hand_sides(A, seed, k)
    B = B * torch.logspace(0, -8, k, dtype=B.dtype)
    settings = {"rtol": 1e-6, "check_every": check_every}
    if preconditioned:
        settings["preconditioner"] = jacobi(A.diagonal())
    starts = {"x0": 0.1 * B} if started else {}
    whole = cg(A, B, **starts, **settings)
    assert whole.x.shape == whole.Ax.shape == B.shape
    assert len(whole.columns) == k
    for index, column in enumerate(whole.columns):
        own = {"x0": 0.1 * B[:, index]} if started else {}
        alone = cg(A, B[:, index], **own, **settings)
        # Products of matrices and of vectors are summed in another order: the same but rounding.
        assert column.status is alone.status
        # Where rounding has taken orthogonality the last digits may cost one an iteration more.
        slack = check_every + math.ceil(0.1 * alone.iterations)
        assert abs(column.iterations - alone.iterations) <= slack
        size = float(B[:, index].norm())
        assert torch.allclose(column.Ax, alone.Ax, rtol=0.0, atol=2e-6 * size)
        assert torch.equal(whole.x[:, index], column.x)
        assert torch.equal(whole.Ax[:, index], column.Ax)


@given(spd_matrices(max_log10_condition=2), SEEDS, st.integers(1, 5))
def test_the_whole_sums_its_columns_up(A, seed, k):
    B = right_hand_sides(A, seed, k)
    whole = cg(A, B, rtol=1e-3)
    assert whole.products == sum(column.products for column in whole.columns)
    assert whole.iterations == max(column.iterations for column in whole.columns)
    assert whole.residual_norm == max(column.residual_norm for column in whole.columns)
    assert whole.direction is None


def test_products_are_shared_and_finished_columns_take_no_part():
    A = matrix_with_spectrum(torch.linspace(1, 50, 40, dtype=torch.float64), seed=0)
    B = right_hand_sides(A, 1, 3)
    B[:, 1] = torch.linalg.eigh(A).eigenvectors[:, 0]  # one iteration
    B[:, 2] = 0.0  # none
    counted = Counted(A)
    whole = cg(counted, B, rtol=1e-6)
    first, second, third = whole.columns
    assert (second.iterations, second.products) == (1, 2)
    assert (third.status, third.products) == (Status.ZERO_RHS, 0)
    assert counted.widths == [2, 2] + [1] * (first.products - 2)
    assert whole.products == sum(counted.widths)


def test_one_column_that_fails_leaves_the_others_alone():
    A = matrix_with_spectrum(torch.linspace(1, 50, 40, dtype=torch.float64), seed=0)
    B = right_hand_sides(A, 1, 4)
    B[3, 1] = NAN
    B[:, 2] = 0.0
    whole = cg(A, B, rtol=1e-6)
    expected = [Status.CONVERGED, Status.NONFINITE, Status.ZERO_RHS, Status.CONVERGED]
    assert [column.status for column in whole.columns] == expected
    assert whole.status is Status.NONFINITE
    assert np.isnan(whole.residual_norm)
    assert torch.isfinite(whole.x).all()
    assert whole.columns[1].products == 0
    good = cg(A, B[:, [0, 3]], rtol=1e-6)
    assert good.status is Status.CONVERGED
    assert torch.allclose(whole.x[:, [0, 3]], good.x, rtol=1e-6)


def test_the_worst_status_comes_to_the_top_with_its_direction():
    A = torch.diag(torch.tensor([1.0, 2.0, -1.0]))
    B = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    whole = cg(A, B)
    expected = [Status.CONVERGED, Status.NEGATIVE_CURVATURE, Status.CONVERGED]
    assert [column.status for column in whole.columns] == expected
    assert whole.status is Status.NEGATIVE_CURVATURE
    assert whole.direction is not None
    assert whole.columns[1].direction is not None
    assert torch.equal(whole.direction, whole.columns[1].direction)
    assert float(whole.direction @ (A @ whole.direction)) <= 0
    truncated = cg(A, B[:, [0, 2]], max_iterations=1)
    assert truncated.status is Status.MAX_ITERATIONS


def test_a_product_that_breaks_for_one_column_ends_that_one():
    A = torch.linspace(1, 50, 40, dtype=torch.float64).diag()
    B = torch.ones(40, 2, dtype=torch.float64)
    calls = 0

    def multiply(v):  # called for one column after the other
        nonlocal calls
        calls += 1
        return A @ v if calls != 6 else v * NAN

    whole = cg(multiply, B)
    assert [column.status for column in whole.columns] == [Status.CONVERGED, Status.NONFINITE]
    assert torch.allclose(whole.x[:, 1], cg(A, B[:, 1], max_iterations=2).x, rtol=1e-12)


def test_numpy_matrices_come_back_as_numpy_matrices():
    A = np.diag([1.0, 2.0, 4.0])
    B = np.array([[1.0, 0.0], [2.0, 0.0], [4.0, 8.0]])
    for operator in (A, lambda v: A @ v):
        whole = cg(operator, np.asfortranarray(B))
        assert isinstance(whole.x, np.ndarray)
        assert isinstance(whole.columns[0].x, np.ndarray)
        assert np.allclose(whole.x, [[1.0, 0.0], [1.0, 0.0], [1.0, 2.0]])


def test_each_column_has_its_own_start():
    A = torch.linspace(1, 50, 40, dtype=torch.float64).diag()
    B = right_hand_sides(A, 1, 3)
    exact = B / A.diagonal()[:, None]
    whole = cg(A, B, x0=exact, rtol=1e-8)
    assert (whole.status, whole.iterations, whole.products) == (Status.CONVERGED, 0, 3)
    exact[:, 1] = 0.0  # which costs no product
    first, second, third = cg(A, B, x0=exact, rtol=1e-8).columns
    assert (first.products, third.products) == (1, 1)
    assert second.products == cg(A, B[:, 1].contiguous(), rtol=1e-8).products


def test_a_start_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="like b"):
        cg(torch.eye(3), torch.ones(3, 2), x0=torch.ones(3))
