import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from natgrad.curvature import Dense
from natgrad.solvers import Status, cholesky
from natgrad.testing.strategies import (
    matrix_with_spectrum,
    spd_matrices,
    symmetric_matrices,
    vectors_like,
)

SEEDS = st.integers(0, 2**31 - 1)
DAMPINGS = st.floats(-6, 2).map(lambda power: 10.0**power)
NAN, INF = float("nan"), float("inf")


def damped(A, damping):
    return A.double() + damping * torch.eye(len(A), dtype=torch.float64)


def relative_residual(A, x, b):
    b = b.double()
    return float((b - A.double() @ x.double()).norm() / b.norm())


@given(spd_matrices(max_log10_condition=8, dtypes=(torch.float64,)), SEEDS, DAMPINGS)
def test_agrees_with_a_direct_solve(A, seed, damping):
    b = vectors_like(A, seed=seed)
    s = cholesky(A, b, damping=damping)
    assert s.status is Status.CONVERGED
    assert (s.products, s.iterations) == (0, 1)
    expected = torch.linalg.solve(damped(A, damping), b)
    condition = float(torch.linalg.cond(damped(A, damping)))
    error = float((s.x - expected).norm() / expected.norm())
    assert error <= 20 * len(A) * 2.2e-16 * condition
    assert float((s.Ax - A @ s.x).norm()) <= 1e-15 * len(A) * float(A.norm() * s.x.norm())


@given(spd_matrices(max_log10_condition=10, max_log10_scale=18), SEEDS, st.floats(-12, -1))
def test_converged_is_never_said_above_the_tolerance(A, seed, digits):
    b = vectors_like(A, seed=seed)
    s = cholesky(A, b, rtol=10.0**digits)
    if s.status is Status.CONVERGED:
        assert relative_residual(A, s.x, b) <= 10.0**digits * (1 + 1e-6)
    if s.status is Status.NEGATIVE_CURVATURE:  # rounding to float32 may take the definiteness
        assert float(torch.linalg.eigvalsh(A.double())[0]) <= 0
    else:
        assert s.status in (Status.CONVERGED, Status.STAGNATED)
    assert np.isclose(s.residual_norm, float(b.norm()) * relative_residual(A, s.x, b), rtol=1e-2)


def test_a_solution_that_float32_cannot_hold_is_not_called_converged():
    eigenvalues = torch.logspace(0, -8, 20, dtype=torch.float64)
    A = matrix_with_spectrum(eigenvalues, seed=0, dtype=torch.float32)
    s = cholesky(A + 1e-6 * torch.eye(20), vectors_like(A, seed=1), rtol=1e-5)
    assert s.status is Status.STAGNATED
    assert s.residual_norm > 1e-3


@given(spd_matrices(max_log10_condition=4, dtypes=(torch.float32,)), SEEDS)
def test_in_float32_refinement_reaches_what_its_rounding_allows(A, seed):
    b = vectors_like(A, seed=seed)
    s = cholesky(A, b, rtol=1e-12)
    exact = torch.linalg.solve(A.double(), b.double())
    assert s.x.dtype == s.Ax.dtype == torch.float32
    assert float((s.x.double() - exact).norm()) <= 1.2e-7 * float(exact.norm())


@given(spd_matrices(max_size=10), SEEDS, st.integers(-30, 30), st.integers(-30, 30), DAMPINGS)
def test_powers_of_two_change_nothing_but_the_scale(A, seed, a_power, b_power, damping):
    a, c = 2.0**a_power, 2.0**b_power
    b = vectors_like(A, seed=seed)
    plain, scaled = cholesky(A, b, damping=damping), cholesky(A * a, b * c, damping=damping * a)
    assert plain.status is scaled.status
    assert torch.equal(plain.x * (c / a), scaled.x)
    assert torch.equal(plain.Ax * c, scaled.Ax)
    assert plain.residual_norm * c == scaled.residual_norm


@given(symmetric_matrices(), SEEDS)
def test_an_indefinite_matrix_is_told_with_a_direction_until_damping_makes_it_positive(A, seed):
    b = vectors_like(A, seed=seed)
    s = cholesky(A, b)
    assert s.status is Status.NEGATIVE_CURVATURE
    assert not s.x.any()
    assert s.direction is not None
    assert s.direction.dtype == A.dtype
    d = s.direction.double()
    lowest = float(torch.linalg.eigvalsh(A.double())[0])
    assert float(d @ (A.double() @ d)) == pytest.approx(lowest * float(d @ d), rel=1e-5)
    enough = cholesky(A, b, damping=2.0, rtol=1e-4)
    assert (enough.status, enough.direction) == (Status.CONVERGED, None)


def test_a_singular_matrix_is_regularised_and_judged_by_the_system_asked_for():
    A = torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    inside = cholesky(A, A @ torch.ones(3, dtype=torch.float64))
    assert inside.status is Status.CONVERGED
    assert inside.iterations > 1
    outside = cholesky(A, torch.ones(3, dtype=torch.float64))
    assert outside.status is Status.STAGNATED
    assert outside.residual_norm == pytest.approx(1.0)
    refused = cholesky(A, torch.ones(3, dtype=torch.float64), jitter=False)
    assert (refused.status, refused.iterations) == (Status.NEGATIVE_CURVATURE, 1)
    assert refused.direction is not None
    assert torch.equal(refused.direction.abs(), torch.eye(3, dtype=torch.float64)[2])


def test_the_tolerance_is_a_share_of_b():
    """The last part of b, 0.1 of 4, is outside the range."""
    A, b = torch.eye(17, dtype=torch.float64), torch.ones(17, dtype=torch.float64)
    A[16, 16], b[16] = 0.0, 0.1
    assert cholesky(A, b, rtol=0.03).status is Status.CONVERGED
    assert cholesky(A, b, rtol=0.02).status is Status.STAGNATED
    exact = cholesky(torch.eye(2), torch.tensor([1.0, 0.0]), rtol=0.0)
    assert (exact.status, exact.residual_norm) == (Status.CONVERGED, 0.0)


def test_the_jitter_starts_at_the_rounding_of_a_matrix_of_that_norm():
    """n eps ‖A‖ is 2.2e-13 here: enough for −1e-13, a tenth of what −1e-12 needs."""
    diagonal = torch.ones(100, dtype=torch.float64)
    for lowest, factorisations in ((-1e-13, 2), (-1e-12, 3)):
        diagonal[-1] = lowest
        assert cholesky(diagonal.diag(), diagonal).iterations == factorisations


def test_float32_is_tried_first_and_float64_where_it_fails():
    A = torch.tensor([[3.0, 1.0], [1.0, 1 / 3]])  # of determinant 3e-8, by rounding
    assert cholesky(A, torch.ones(2)).iterations == 2
    assert cholesky(A + torch.eye(2), torch.ones(2)).iterations == 1


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_asymmetry_counts_beside_the_largest_entry(scale):
    A = torch.eye(3, dtype=torch.float64)
    A[0, 1] = 1e-10
    assert cholesky(scale * A, torch.ones(3, dtype=torch.float64)).status is Status.CONVERGED
    A[0, 1] = 1e-6
    with pytest.raises(ValueError, match="symmetric A"):
        cholesky(scale * A, torch.ones(3, dtype=torch.float64))
    assert cholesky(torch.zeros(2, 2), torch.ones(2), jitter=False).direction is not None


def test_every_column_is_refined_until_it_passes():
    """In float32, at tolerances from beyond its reach to well within it."""
    A = matrix_with_spectrum(torch.logspace(0, -3, 40).double(), seed=0, dtype=torch.float32)
    B = torch.stack([vectors_like(A, seed=seed) for seed in range(32)], dim=1)
    least = [column.residual_norm for column in cholesky(A, B, rtol=0.0).columns]
    for rtol in torch.logspace(-3, -7, 13).tolist():
        for column, b, reached in zip(cholesky(A, B, rtol=rtol).columns, B.mT, least, strict=True):
            if reached <= 0.4 * rtol * float(b.norm()):
                assert column.status is Status.CONVERGED


def test_a_column_outside_the_range_leaves_the_others_alone():
    A = torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    B = torch.tensor([[0.0, 0.0, 3.0], [1.0, 1.0, 0.0]], dtype=torch.float64).mT
    outside, inside = cholesky(A, B).columns
    assert (outside.status, inside.status) == (Status.STAGNATED, Status.CONVERGED)
    # No multiple of e₃ lowers the residual of the first, so that it has none.
    assert torch.equal(outside.x, torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(inside.x, B[:, 1], rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_columns_are_the_loop_over_them_whatever_their_scales(dtype):
    A = matrix_with_spectrum(torch.linspace(1, 9, 6, dtype=torch.float64), seed=0, dtype=dtype)
    B = torch.stack([vectors_like(A, seed=seed) for seed in range(5)], dim=1)
    far = 1e30 if dtype == torch.float32 else 1e200
    B = B * torch.tensor([1.0, 1 / far, 0.0, far, 1.0], dtype=dtype)
    B[2, 4] = NAN
    whole = cholesky(A, B)
    assert whole.status is Status.NONFINITE
    expected = [Status.CONVERGED] * 2 + [Status.ZERO_RHS, Status.CONVERGED, Status.NONFINITE]
    assert [column.status for column in whole.columns] == expected
    assert torch.isfinite(whole.x).all()
    for index in range(4):
        alone = cholesky(A, B[:, index]).x
        assert torch.allclose(whole.x[:, index], alone, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("bad", [NAN, INF])
def test_nonfinite_input_is_told_and_x_is_zero(bad):
    broken = torch.eye(3)
    broken[0, 0] = bad
    for s in (
        cholesky(broken, torch.ones(3)),
        cholesky(torch.eye(3), torch.tensor([1.0, bad, 1.0])),
        cholesky(torch.eye(3).double() * 1e-100, torch.ones(3).double(), damping=1e300),
    ):
        assert s.status is Status.NONFINITE
        assert not s.x.any()
    assert cholesky(broken, torch.ones(3)).iterations == 0


def test_products_are_those_that_form_the_matrix():
    whole = cholesky(Dense(2 * torch.eye(3)), torch.ones(3, 2))
    assert whole.products == 3
    assert [column.products for column in whole.columns] == [3, 0]


def test_every_kind_of_matrix_gives_the_answer_in_the_kind_of_b():
    matrix = np.diag([1.0, 2.0, 4.0])
    tensor = torch.from_numpy(matrix)
    for A, products in ((matrix, 0), (tensor, 0), (Dense(tensor), 3), (lambda v: matrix @ v, 3)):
        s = cholesky(A, np.ones(3))
        assert isinstance(s.x, np.ndarray)
        assert isinstance(s.Ax, np.ndarray)
        assert np.allclose(s.x, [1.0, 0.5, 0.25])
        assert s.products == products
    assert isinstance(cholesky(-matrix, np.ones(3)).direction, np.ndarray)
    zero = cholesky(matrix, np.zeros(3))
    assert (zero.status, zero.residual_norm) == (Status.ZERO_RHS, 0.0)
    empty = cholesky(torch.zeros(0, 0), torch.zeros(0))
    assert (empty.status, empty.x.shape) == (Status.ZERO_RHS, (0,))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: cholesky(torch.ones(2, 2).triu(), torch.ones(2)), ValueError, "symmetric A"),
        (lambda: cholesky(torch.eye(2), torch.ones(2), damping=-1.0), ValueError, "got -1.0"),
        (lambda: cholesky(torch.eye(2), torch.ones(2), damping=NAN), ValueError, "got nan"),
        (lambda: cholesky(torch.eye(2), torch.ones(2), damping=INF), ValueError, "got inf"),
        (lambda: cholesky(torch.eye(2), torch.ones(2), rtol=-1.0), ValueError, "rtol"),
        (lambda: cholesky(torch.eye(3), torch.ones(2)), ValueError, "b has 2 elements"),
        (lambda: cholesky(torch.eye(2).double(), torch.ones(2)), ValueError, "convert one"),
        (lambda: cholesky(torch.eye(2), torch.ones(2, 0)), ValueError, "no columns"),
        (lambda: cholesky(torch.eye(2), [1.0, 1.0]), TypeError, "NumPy array"),  # type: ignore[type-var]
    ],
)
def test_errors_say_what_came_and_what_was_wanted(call, error, message):
    with pytest.raises(error, match=message):
        call()
