"""MINRES: starts, columns, preconditioners, limits and bad input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from natgrad.curvature import Dense
from natgrad.solvers import Status, minres
from natgrad.testing.strategies import (
    matrix_with_spectrum,
    spd_matrices,
    symmetric_matrices,
    vectors_like,
)

SEEDS = st.integers(0, 2**31 - 1)
NAN, INF = float("nan"), float("inf")


def regular(A):
    """The same with every eigenvalue at least 0.01 away from 0."""
    eigenvalues, vectors = torch.linalg.eigh(A)
    eigenvalues = torch.where(eigenvalues.abs() < 0.01, 0.01, eigenvalues)
    A = (vectors * eigenvalues) @ vectors.mT
    return (A + A.mT) / 2


REGULAR = symmetric_matrices(dtypes=(torch.float64,)).map(regular)


@given(REGULAR, SEEDS)
def test_warm_starts(A, seed):
    b = vectors_like(A, seed=seed)
    exact = torch.linalg.solve(A, b)
    there = minres(A, b, x0=exact, rtol=1e-9)
    assert (there.status, there.iterations, there.products) == (Status.CONVERGED, 0, 1)
    cold = minres(A, b, rtol=1e-9)
    near = minres(A, b, x0=exact * (1 + 1e-6), rtol=1e-9)
    assert near.status is cold.status is Status.CONVERGED
    assert near.iterations <= cold.iterations
    assert torch.equal(minres(A, b, x0=torch.zeros_like(b), rtol=1e-9).x, cold.x)


@settings(max_examples=50)
@given(REGULAR, SEEDS, st.integers(1, 4))
def test_columns_are_the_loop_over_them(A, seed, k):
    B = torch.stack([vectors_like(A, seed=seed + column) for column in range(k)], dim=1)
    B[:, -1] *= 1e-8
    start = 0.1 * B.roll(1, dims=0)
    for started in (False, True):
        whole = minres(A, B, rtol=1e-6, x0=start if started else None)
        assert len(whole.columns) == k
        for index, column in enumerate(whole.columns):
            x0 = start[:, index] if started else None
            alone = minres(A, B[:, index].contiguous(), rtol=1e-6, x0=x0)
            assert column.status is alone.status
            tolerance = 3e-6 * float(B[:, index].norm())  # both within 1e-6 of the same
            assert torch.allclose(column.Ax, alone.Ax, rtol=0.0, atol=tolerance)
            assert torch.equal(whole.x[:, index], column.x)
        assert whole.products == sum(column.products for column in whole.columns)


@given(spd_matrices(max_size=10, max_log10_condition=2, dtypes=(torch.float64,)), SEEDS)
def test_a_preconditioner_is_a_change_of_variables(A, seed):
    """MINRES with M = D² on A is MINRES on D A D, x = D y."""
    A = A - 0.3 * torch.eye(len(A), dtype=A.dtype)
    generator = torch.Generator().manual_seed(seed)
    d = 0.5 + torch.rand(len(A), generator=generator, dtype=torch.float64)
    b = vectors_like(A, seed=seed)
    for k in range(1, 4):
        left = minres(A, b, preconditioner=(d * d).diag(), rtol=0.0, max_iterations=k)
        right = minres(d[:, None] * A * d, d * b, rtol=0.0, max_iterations=k)
        if left.status is right.status is Status.MAX_ITERATIONS:
            size = float(left.x.norm())
            assert torch.allclose(left.x, d * right.x, rtol=1e-7, atol=1e-7 * size)


@given(REGULAR, SEEDS, st.integers(-30, 30))
def test_the_absolute_inverse_as_preconditioner_needs_two_iterations_at_any_scale(A, seed, power):
    eigenvalues, vectors = torch.linalg.eigh(A)
    inverse = (vectors / eigenvalues.abs()) @ vectors.mT * 10.0**power
    b = vectors_like(A, seed=seed)
    s = minres(A, b, preconditioner=(inverse + inverse.mT) / 2, rtol=1e-8)
    assert s.status is Status.CONVERGED
    assert s.iterations <= 2


@given(REGULAR, SEEDS)
def test_under_a_preconditioner_too_a_direction_has_nonpositive_curvature(A, seed):
    generator = torch.Generator().manual_seed(seed)
    d = 0.1 + torch.rand(len(A), generator=generator, dtype=torch.float64)
    s = minres(A, vectors_like(A, seed=seed), preconditioner=d.diag(), rtol=1e-6)
    if s.direction is not None:
        v = s.direction
        assert float(v @ (A @ v)) <= 1e-13 * float(A.norm() * (v @ v))


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_a_system_whose_squares_leave_the_range_is_solved(scale):
    A = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64).diag() * scale
    s = minres(A, torch.ones(3, dtype=torch.float64) * scale)
    assert s.status is Status.CONVERGED
    assert torch.allclose(s.x, torch.tensor([1.0, -1 / 2, 1 / 3], dtype=torch.float64))


def test_the_tolerance_is_that_of_the_two_norm_under_a_preconditioner():
    A = torch.linspace(1, 100, 50, dtype=torch.float64).diag()
    b = torch.ones(50, dtype=torch.float64)
    M = torch.logspace(-1, 1, 50, dtype=torch.float64)
    s = minres(A, b, preconditioner=M.diag(), rtol=1e-6)
    assert s.status is Status.CONVERGED
    assert float((b - A @ s.x).norm()) <= 1e-6 * float(b.norm())


def test_a_preconditioner_that_is_not_positive_is_told():
    calls = 0

    def turns(v):
        nonlocal calls
        calls += 1
        return v if calls < 3 else -v

    for preconditioner in (lambda v: -v, turns):
        s = minres(torch.linspace(1, 9, 9).diag(), torch.ones(9), preconditioner=preconditioner)
        assert s.status is Status.NEGATIVE_CURVATURE
        assert torch.isfinite(s.x).all()


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("fail_at", [1, 2, 5])
def test_a_nonfinite_product_ends_the_solve_with_the_last_finite_iterate(bad, fail_at):
    A = torch.diag(torch.linspace(-50, 100, 30, dtype=torch.float64))
    b = torch.ones(30, dtype=torch.float64)
    calls = 0

    def multiply(v):
        nonlocal calls
        calls += 1
        return A @ v if calls != fail_at else torch.full_like(v, bad)

    s = minres(multiply, b)
    assert s.status is Status.NONFINITE
    assert s.products == calls == fail_at
    assert torch.equal(s.x, minres(A, b, max_iterations=fail_at - 1).x)


@pytest.mark.parametrize("start", [None, torch.ones(9)])
def test_a_nonfinite_product_that_verifies_leaves_x_finite(start):
    A = torch.linspace(1, 9, 9).diag()
    enough = minres(A, torch.ones(9), x0=start).products
    for fail_at in range(1, enough + 1):
        calls = 0

        def multiply(v, fail_at=fail_at):
            nonlocal calls
            calls += 1
            return A @ v if calls != fail_at else torch.full_like(v, NAN)

        s = minres(multiply, torch.ones(9), x0=start)
        assert s.status is Status.NONFINITE
        assert torch.isfinite(s.x).all()
        assert s.products <= fail_at + 1


def test_nonfinite_b_x0_and_preconditioner_end_at_once_and_finite():
    A, b = torch.eye(3), torch.ones(3)
    nan = torch.tensor([1.0, NAN, 1.0])
    for s in (
        minres(A, nan),
        minres(A, b, x0=nan),
        minres(A, b, preconditioner=lambda v: v * NAN),
    ):
        assert s.status is Status.NONFINITE
        assert torch.equal(s.x, torch.zeros(3))
        assert s.products <= 1


@pytest.mark.parametrize("power", [-100, 100])
def test_a_warm_start_is_free_of_scale(power):
    a, c = 2.0**power, 2.0**-20
    A, b = torch.diag(torch.linspace(1, 50, 40)), torch.ones(40)
    x0 = b / A.diagonal() * torch.linspace(0.5, 2, 40)
    plain, scaled = minres(A, b, x0=x0), minres(a * A, c * b, x0=x0 * (c / a))
    assert plain.status is scaled.status is Status.CONVERGED
    assert torch.equal(plain.x * (c / a), scaled.x)
    assert torch.equal(plain.Ax * c, scaled.Ax)


@pytest.mark.parametrize(("scale", "b_scale"), [(1e30, 1e-30), (1e-30, 1e30)])
def test_a_solution_outside_the_range_of_the_dtype_is_told(scale, b_scale):
    s = minres(torch.eye(3) * scale, torch.tensor([1.0, 0.3, 0.7]) * b_scale)
    assert s.status is Status.NONFINITE


def test_a_preconditioner_that_fails_later_keeps_the_last_finite_iterate():
    calls = 0

    def preconditioner(v):
        nonlocal calls
        calls += 1
        return v if calls < 3 else v * NAN

    s = minres(torch.linspace(1, 9, 9).diag(), torch.ones(9), preconditioner=preconditioner)
    assert s.status is Status.NONFINITE
    assert torch.isfinite(s.x).all()
    assert s.x.any()


def test_least_squares_are_those_in_the_norm_of_the_preconditioner():
    A = torch.diag(torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64))
    M = torch.tensor([[2.0, 0.5, 0.3], [0.5, 1.0, 0.2], [0.3, 0.2, 1.0]], dtype=torch.float64)
    products = 0

    def multiply(v):
        nonlocal products
        products += 1
        return A @ v

    s = minres(multiply, torch.ones(3, dtype=torch.float64), preconditioner=M)
    assert s.status is Status.LEAST_SQUARES
    assert s.products == products
    residual = torch.ones(3, dtype=torch.float64) - A @ s.x
    assert float((A @ (M @ residual)).norm()) <= 1e-12
    assert float((A @ residual).norm()) > 0.1


def test_limits_of_iterations_and_atol():
    A, b = torch.diag(torch.tensor([1.0, -2.0, 4.0])), torch.ones(3)
    none = minres(A, b, max_iterations=0)
    assert (none.status, none.iterations) == (Status.MAX_ITERATIONS, 0)
    assert torch.equal(none.x, torch.zeros(3))
    assert minres(A, b, max_iterations=3).status is Status.CONVERGED
    short = minres(A, b, max_iterations=2)
    assert (short.status, short.iterations, short.products) == (Status.MAX_ITERATIONS, 2, 3)
    loose = minres(A, b, rtol=0.0, atol=0.5)
    assert loose.status is Status.CONVERGED
    assert loose.residual_norm <= 0.5
    zero = minres(Dense(torch.eye(3)), torch.zeros(3), x0=torch.ones(3))
    assert (zero.status, zero.products) == (Status.ZERO_RHS, 0)
    assert not zero.x.any()


def test_a_zero_matrix_has_the_zero_solution_of_least_squares():
    for x0 in (None, torch.ones(3)):
        s = minres(torch.zeros(3, 3), torch.ones(3), x0=x0)
        assert s.status is Status.LEAST_SQUARES
        assert s.residual_norm == pytest.approx(3**0.5)
        assert s.products <= 6


def test_the_answer_comes_in_the_kind_of_b():
    matrix = np.diag([1.0, -2.0, 4.0])
    s = minres(matrix, np.ones(3))
    assert isinstance(s.x, np.ndarray)
    assert np.allclose(s.x, [1.0, -0.5, 0.25])
    assert isinstance(s.direction, np.ndarray | None)
    both = minres(lambda v: matrix @ v, np.ones((3, 2)))
    assert np.allclose(both.x, [[1.0, 1.0], [-0.5, -0.5], [0.25, 0.25]])
    assert isinstance(both.columns[1].Ax, np.ndarray)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: minres(torch.eye(3), torch.ones(2)), ValueError, "b has 2 elements"),
        (lambda: minres(torch.eye(2).double(), torch.ones(2)), ValueError, "convert one"),
        (lambda: minres(torch.eye(2), torch.ones(2, 0)), ValueError, "no columns"),
        (lambda: minres(torch.eye(2), [1.0, 1.0]), TypeError, "NumPy array"),  # type: ignore[type-var]
        (lambda: minres("A", torch.ones(2)), TypeError, "A must support"),  # type: ignore[arg-type]
        (lambda: minres(torch.eye(2), torch.ones(2), rtol=-1.0), ValueError, "rtol .* got -1.0"),
        (lambda: minres(torch.eye(2), torch.ones(2), atol=NAN), ValueError, "atol .* got nan"),
        (lambda: minres(torch.eye(2), torch.ones(2), max_iterations=-1), ValueError, "got -1"),
        (lambda: minres(torch.eye(2), torch.ones(2), x0=torch.ones(3)), ValueError, "like b"),
    ],
)
def test_errors_say_what_came_and_what_was_wanted(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(("share", "status"), [(2.1, "CONVERGED"), (1.9, "STAGNATED")])
def test_the_margin_of_rounding_is_eps_of_the_two_terms(share, status):
    """b − A x = 0 exactly: what is left is eps (‖A‖ ‖x‖ + ‖b‖) = 2 eps ‖b‖."""
    rtol = share * torch.finfo(torch.float32).eps
    for scale in (2.0, 2.0**-40):
        for x0 in (None, torch.ones(4) / scale):
            s = minres(scale * torch.eye(4), torch.ones(4), x0=x0, rtol=rtol)
            assert s.status is Status[status]
            assert torch.equal(s.x, torch.ones(4) / scale)


@pytest.mark.parametrize("scale", [1.0, 2.0**-20, 2.0**20])
def test_it_ends_at_the_first_iterate_that_passes(scale):
    A = torch.linspace(1, 50, 400, dtype=torch.float64).diag()
    b = torch.ones(400, dtype=torch.float64)
    norms = [minres(A, b, rtol=0.0, max_iterations=k).residual_norm for k in range(12)]
    for k in (3, 6, 10):
        between = (norms[k] * norms[k - 1]) ** 0.5
        relative = minres(A, scale * b, rtol=between / 20)
        absolute = minres(A, scale * b, rtol=0.0, atol=between * scale)
        assert relative.status is absolute.status is Status.CONVERGED
        assert relative.iterations == absolute.iterations == k


def test_repeated_eigenvalues_end_the_krylov_space_early():
    A = matrix_with_spectrum(torch.tensor([1.0, -2.0]).double().repeat(10), seed=0)
    s = minres(A, vectors_like(A, seed=1), rtol=1e-10)
    assert (s.status, s.iterations) == (Status.CONVERGED, 2)
