"""Least squares by singular values, beside torch.linalg on [J; √λ I] and the conditions of KKT."""

import itertools
import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from natgrad.solvers import LeastSquares, Status, least_squares, sample_space
from natgrad.testing.strategies import DTYPES

SEEDS = st.integers(0, 2**31 - 1)
DAMPINGS = st.floats(-6, 2).map(lambda power: 10.0**power)
RADII = st.floats(-3, 2).map(lambda power: 10.0**power)
NAN, INF = float("nan"), float("inf")
DOUBLE = torch.float64
# Tall (a triangle first), nearly square, square, wide; one row, one column.
SHAPES = [(12, 3), (9, 6), (7, 6), (6, 6), (4, 9), (1, 5), (5, 1), (1, 1)]


def random_(*shape, seed, dtype=DOUBLE):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=DOUBLE).to(dtype)


def matrix(m, n, values, seed, dtype=DOUBLE):
    """(m, n) with these singular values."""
    rank = len(values)
    left, _ = torch.linalg.qr(random_(m, rank, seed=seed))
    right, _ = torch.linalg.qr(random_(n, rank, seed=seed + 1))
    return ((left * values) @ right.mT).to(dtype)


def spectrum(rank, log10_condition):
    return torch.logspace(0, -log10_condition, rank, dtype=DOUBLE)


@st.composite
def matrices(draw, max_log10_condition=3.0, dtypes=DTYPES):
    m, n = draw(st.sampled_from(SHAPES))
    rank = draw(st.integers(1, min(m, n)))
    values = spectrum(rank, draw(st.floats(0, max_log10_condition)))
    return matrix(m, n, values, draw(SEEDS), draw(st.sampled_from(dtypes)))


def by_lstsq(J, r, damping):
    """argmin ‖J x − r‖² + λ ‖x‖², of least norm, in float64: nothing squared there either."""
    J, r, n = J.double(), r.double(), J.shape[1]
    tall = torch.cat([J, damping**0.5 * torch.eye(n, dtype=DOUBLE)])
    right = torch.cat([r, torch.zeros(n, dtype=DOUBLE)])
    found = torch.linalg.lstsq(tall, right.unsqueeze(1), rcond=1e-12, driver="gelsd")
    return found.solution[:, 0]


def normal_residual(J, r, shift, x):
    """‖Jᵀr − (JᵀJ + shift I) x‖ and ‖Jᵀr‖, in float64 and of the rounded data."""
    J, r, x = J.double(), r.double(), x.double()
    b = J.mT @ r
    return float((b - J.mT @ (J @ x) - shift * x).norm()), float(b.norm())


@settings(max_examples=60)
@given(matrices(), SEEDS, st.lists(DAMPINGS, min_size=1, max_size=4))
def test_one_decomposition_serves_every_damping(J, seed, dampings):
    r = random_(len(J), seed=seed, dtype=J.dtype)
    decomposed = least_squares(J)
    for damping in dampings:
        s, expected = decomposed.solve(r, damping=damping), by_lstsq(J, r, damping)
        # Singular values below eps ‖J‖, which may be rounding, count as zero.
        eps, lost = torch.finfo(J.dtype).eps, max(J.shape) * float(r.double().norm()) / damping
        error = float((s.x.double() - expected).norm())
        assert error <= eps * (10 * float(expected.norm()) + 10 * lost)
        assert (s.products, s.iterations, s.multiplier) == (0, 0, 0.0)


@settings(max_examples=60)
@given(matrices(), SEEDS, st.just(0.0) | DAMPINGS, st.just(INF) | RADII)
def test_its_account_is_that_of_the_answer_as_returned(J, seed, damping, radius):
    r = random_(len(J), seed=seed, dtype=J.dtype)
    s = least_squares(J).solve(r, damping=damping, radius=radius, rtol=1e-5)
    residual, b_norm = normal_residual(J, r, damping + s.multiplier, s.x)
    rounding = 1e-14 * float(r.double().norm()) * (1 + damping + s.multiplier)
    assert s.residual_norm == pytest.approx(residual, rel=1e-6, abs=rounding)
    assert s.status is not Status.CONVERGED or residual <= 1e-5 * b_norm + rounding
    assert s.status in (Status.CONVERGED, Status.STAGNATED, Status.BOUNDARY)
    image = J.double().mT @ (J.double() @ s.x.double())
    assert torch.allclose(s.Ax.double(), image, rtol=1e-6, atol=1e-7 * float(image.norm()))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rank", [1, 2, 6])
def test_without_damping_it_is_the_least_squares_solution_of_least_norm(
    shape: tuple[int, int], rank: int
):
    J = matrix(*shape, spectrum(min(rank, *shape), 3.0), seed=3)
    r = random_(len(J), seed=5)
    s, expected = least_squares(J).solve(r), torch.linalg.pinv(J, rtol=1e-10) @ r
    torch.testing.assert_close(s.x, expected, rtol=1e-9, atol=1e-10 * float(expected.norm()))
    assert s.status is Status.CONVERGED


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(12, 3), (6, 6), (4, 9)], ids=str)
def test_float32_costs_the_rounding_of_the_answer_and_no_more(shape: tuple[int, int], dtype):
    J = matrix(*shape, spectrum(min(shape), 3.0), seed=3, dtype=dtype)
    r = random_(len(J), seed=5, dtype=dtype)
    expected = by_lstsq(J, r, 0.0)
    error = (least_squares(J).solve(r).x.double() - expected).norm() / expected.norm()
    assert error <= (1e-12 if dtype == DOUBLE else torch.finfo(dtype).eps)


@settings(max_examples=60)
@given(
    J=matrices(dtypes=(DOUBLE,)), seed=SEEDS, damping=st.just(0.0) | DAMPINGS, radius=RADII
)  # fmt: skip
def test_within_a_radius_it_is_the_dense_solution(J, seed, damping, radius, dense_trust_region):
    """KKT: (JᵀJ + (λ + μ) I) x = Jᵀr, μ >= 0, ‖x‖ <= Δ, μ (Δ − ‖x‖) = 0."""
    r = random_(len(J), seed=seed)
    s = least_squares(J).solve(r, damping=damping, radius=radius)
    length = float(s.x.norm())
    assert length <= radius * (1 + 1e-15)
    assert s.multiplier >= 0
    assert (s.status is Status.BOUNDARY) == (s.multiplier > 0)
    if s.multiplier:
        assert length == pytest.approx(radius, rel=1e-12)
    residual, _ = normal_residual(J, r, damping + s.multiplier, s.x)
    assert residual <= 1e-13 * float(r.norm()) * (1 + (damping + s.multiplier) * radius)
    A = J.mT @ J + damping * torch.eye(J.shape[1], dtype=DOUBLE)
    dense = dense_trust_region(A, J.mT @ r, radius)
    value = float(0.5 * s.x @ (A @ s.x) - (J.mT @ r) @ s.x)
    assert value <= dense.value + 1e-9 * abs(dense.value)


def test_the_multiplier_of_many_equal_parts():
    """x = r / (1 + μ), ‖r‖ / (1 + μ) = 1."""
    s = least_squares(torch.eye(400, dtype=DOUBLE)).solve(torch.ones(400, dtype=DOUBLE), radius=1.0)
    assert s.multiplier == pytest.approx(19, rel=1e-12)


@settings(max_examples=30)
@given(matrices(), SEEDS, st.just(0.0) | DAMPINGS)
def test_a_smaller_radius_is_a_shorter_step_and_a_smaller_decrease(J, seed, damping):
    r = random_(len(J), seed=seed, dtype=J.dtype)
    decomposed = least_squares(J)
    radii = [10.0**power for power in range(-4, 4)]
    steps = [decomposed.solve(r, damping=damping, radius=radius).x.double() for radius in radii]
    eps = torch.finfo(J.dtype).eps

    def value(x):
        J_, r_ = J.double(), r.double()
        return float((r_ - J_ @ x).square().sum() + damping * x.square().sum())

    for left, right in itertools.pairwise(steps):
        assert float(left.norm()) <= float(right.norm()) * (1 + 2 * eps)
        assert value(right) <= value(left) + 8 * eps * value(torch.zeros_like(left))


@settings(max_examples=60)
@given(matrices(), SEEDS, st.integers(-20, 20), st.integers(-20, 20), st.just(0.0) | DAMPINGS)
def test_powers_of_two_change_nothing_but_the_scale(J, seed, j_power, r_power, damping):
    if J.dtype == DOUBLE:
        j_power, r_power = 12 * j_power, 12 * r_power
    a, c = 2.0**j_power, 2.0**r_power
    r = random_(len(J), seed=seed, dtype=J.dtype)
    plain, scaled = least_squares(J), least_squares(J * a)
    assert torch.equal(plain.singular_values * a, scaled.singular_values)
    for radius in (INF, 0.1):
        left = plain.solve(r, damping=damping, radius=radius)
        right = scaled.solve(r * c, damping=damping * a * a, radius=radius * c / a)
        assert left.status is right.status
        assert torch.equal(left.x * (c / a), right.x)
        assert left.multiplier * a * a == right.multiplier


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(12, 3), (6, 6), (4, 9)], ids=str)
@pytest.mark.parametrize("scales", [(1e20, 1.0), (1e-20, 1.0), (1e20, 1e20), (1e-20, 1e-20)])
def test_any_unit_of_residuals_and_parameters_will_do(scales, shape: tuple[int, int], dtype):
    a, c = scales if dtype == DOUBLE else (scales[0] ** 0.5, scales[1] ** 0.5)
    J = matrix(*shape, spectrum(min(shape), 2.0), seed=3, dtype=dtype)
    r = random_(len(J), seed=5, dtype=dtype)
    for damping, radius in ((0.0, INF), (0.1, INF), (0.0, 0.2)):
        plain = least_squares(J).solve(r, damping=damping, radius=radius)
        scaled = least_squares(J * a).solve(r * c, damping=damping * a * a, radius=radius * c / a)
        assert plain.status is scaled.status
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(scaled.x * (a / c), plain.x, rtol=1e3 * eps, atol=100 * eps)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_squares_may_leave_the_range(scale):
    """σ² is 1e∓400: neither shift nor multiplier is formed from it."""
    J = torch.diag(torch.tensor([2.0, 1.0], dtype=DOUBLE)) * scale
    r = torch.tensor([2.0, 3.0], dtype=DOUBLE)
    s = least_squares(J).solve(r)
    assert s.status is Status.CONVERGED
    torch.testing.assert_close(s.x * scale, torch.tensor([1.0, 3.0], dtype=DOUBLE))
    s = least_squares(J).solve(r, radius=0.5 / scale)
    assert s.status is Status.BOUNDARY
    assert float((s.x * scale).norm()) == pytest.approx(0.5)


@pytest.mark.parametrize("log10_condition", [6, 8, 10])
@pytest.mark.parametrize("shape", [(30, 8), (8, 8), (8, 30)], ids=str)
def test_small_singular_values_are_not_squared_away(shape, log10_condition):
    """r = J x for an x in the range of Jᵀ: x is lost by cond · eps, not by cond² · eps."""
    m, n = shape
    values = spectrum(min(shape), log10_condition)
    J = matrix(m, n, values, seed=3)
    right = torch.linalg.svd(J, full_matrices=False).Vh
    x = right.mT @ torch.ones(len(right), dtype=DOUBLE)
    r = J @ x
    damping = 1e-16 * float(values[-1]) ** 2  # or the normal equations of a wide J are singular
    s = least_squares(J).solve(r)
    error = float((s.x - x).norm() / x.norm())
    assert error <= 10 * 10.0**log10_condition * torch.finfo(DOUBLE).eps

    A = J.mT @ J + damping * torch.eye(n, dtype=DOUBLE)
    normal = torch.linalg.lstsq(A, (J.mT @ r).unsqueeze(1), driver="gelsd").solution[:, 0]
    assert error < 1e-3 * float((normal - x).norm() / x.norm())

    class Gram:
        def to_dense(self):
            return J @ J.mT

        def transpose(self, u):
            return J.mT @ u

    squared = sample_space(Gram()).solve(r).x
    assert error < 1e-3 * float((squared - x).norm() / x.norm())


def test_what_float32_cannot_solve_to_the_tolerance_is_said():
    """Condition 1e5, squared in the normal equations: their residual is some 1e-4."""
    J = matrix(9, 6, spectrum(6, 5.0), seed=3, dtype=torch.float32)
    r = random_(9, seed=5, dtype=torch.float32)
    s, loose = least_squares(J).solve(r), least_squares(J).solve(r, rtol=0.1)
    assert s.residual_norm > 2e-5 * float((J.mT @ r).norm())
    assert (s.status, loose.status) == (Status.STAGNATED, Status.CONVERGED)


def test_singular_values_are_those_of_the_matrix_and_rounding_is_zero():
    for shape in SHAPES[:5]:
        J = matrix(*shape, torch.tensor([3.0, 1e-2, 0.0], dtype=DOUBLE), seed=1)
        found = least_squares(J)
        assert isinstance(found, LeastSquares)
        expected = torch.zeros(min(shape), dtype=DOUBLE)
        expected[:2] = torch.tensor([3.0, 1e-2], dtype=DOUBLE)
        torch.testing.assert_close(found.singular_values, expected, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("shape", [(12, 3), (4, 9)], ids=str)
@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_without_a_gradient_the_step_is_zero(damping, shape):
    J = torch.zeros(shape)
    J[0, 0] = 1.0
    orthogonal = torch.zeros(len(J))
    orthogonal[1] = 1.0
    for matrix_, r in ((J, torch.zeros(len(J))), (J, orthogonal), (0 * J, torch.ones(len(J)))):
        s = least_squares(matrix_).solve(r, damping=damping, radius=1.0)
        assert s.status is Status.ZERO_RHS
        assert not s.x.any()
        assert not s.Ax.any()


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("shape", [(12, 3), (6, 6), (4, 9)], ids=str)
def test_what_is_not_finite_is_told_and_x_is_zero(shape, bad):
    J = random_(*shape, seed=0)
    r = random_(len(J), seed=1)
    broken, wrong = J.clone(), r.clone()
    broken[0, 0] = wrong[-1] = bad
    for s in (
        least_squares(J).solve(wrong, radius=1.0),
        least_squares(broken).solve(r),
        least_squares(broken).solve(wrong, damping=1.0),
    ):
        assert s.status is Status.NONFINITE
        assert not s.x.any()
        assert not s.Ax.any()


@pytest.mark.parametrize(("J_scale", "r_scale"), [(1e30, 1e-30), (1e-30, 1e30)])
def test_an_answer_outside_the_range_is_told(J_scale, r_scale):
    s = least_squares(torch.eye(3) * J_scale).solve(torch.ones(3) * r_scale)
    assert s.status is Status.NONFINITE
    assert not s.x.any()


def test_a_product_outside_the_range_is_told():
    s = least_squares(1e19 * torch.eye(2)).solve(torch.full((2,), 1e20))
    assert s.status is Status.NONFINITE  # x is 10, JᵀJ x is 1e39
    assert not s.x.any()
    assert not s.Ax.any()


def test_tolerance_radius_and_rounding_include_their_bounds():
    r = torch.tensor([3.0, 4.0], dtype=DOUBLE)
    s = least_squares(torch.eye(2, dtype=DOUBLE)).solve(r, radius=5.0, rtol=0.0)
    assert (s.status, s.multiplier, s.residual_norm) == (Status.CONVERGED, 0.0, 0.0)
    assert torch.equal(s.x, r)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(9, 6), (6, 6), (4, 9)], ids=str)
def test_what_rounding_of_the_entries_explains_is_zero(shape, dtype):
    """Directions in which J, of rank 2 before it was rounded, is rounding alone."""
    m, n = shape
    for seed in range(20):
        # A product of numbers of float32 is exact, and powers of two scale its rounding with it.
        left, right = random_(m, 2, seed=seed).float(), random_(2, n, seed=seed + 100).float()
        J = (left.double() @ right.double()).to(dtype)
        for rows in (0, 5):
            for columns in (0, 5):
                D = 2.0 ** (rows * torch.arange(m, dtype=DOUBLE)).unsqueeze(1)
                E = 2.0 ** (columns * torch.arange(n, dtype=DOUBLE))
                found = least_squares((D * J * E).to(dtype)).singular_values
                assert int((found > 0).sum()) == 2


@settings(max_examples=60)
@given(
    st.sampled_from(SHAPES[:5]),
    SEEDS,
    st.sampled_from([0, 8, 12, 15]),
    st.sampled_from([0, 8, 12, 15]),
)
def test_small_columns_and_rows_keep_their_singular_values(shape, seed, row_power, column_power):
    """D C E for well-conditioned C, against 120 digits' arithmetic: three digits at least of small
    columns or rows, one of what is small in both and not left out."""
    m, n = shape
    C = random_(m, n, seed=seed)
    rows = 10 ** torch.linspace(-row_power, row_power, m, dtype=DOUBLE)
    columns = 10 ** torch.linspace(column_power, -column_power, n, dtype=DOUBLE)
    condition = float(torch.linalg.cond(C))
    if condition > 1e3:
        return
    J = rows.unsqueeze(1) * C * columns
    with mpmath.workdps(120):
        tall = mpmath.matrix((J if m >= n else J.mT).tolist())
        exact = sorted(map(float, mpmath.svd_r(tall, compute_uv=False)), reverse=True)
    found = sorted(least_squares(J).singular_values.tolist(), reverse=True)
    if row_power and column_power:  # where both are small it may be rounding of what is not
        exact = [value if other else 0.0 for value, other in zip(exact, found, strict=True)]
        assert sum(value > 0 for value in found) >= 2
    assert found == pytest.approx(exact, rel=0.1 if row_power and column_power else 1e-3, abs=0.0)


def test_a_small_column_is_no_rounding():
    """Column norms 1 and 100 eps of float32, which a bound by ‖J‖ and m would take for noise."""
    J = torch.zeros(10_000, 2)
    J[:5_000, 0], J[5_000:, 1] = 1.0, 1e-5
    s = least_squares(J).solve(torch.ones(10_000))
    torch.testing.assert_close(s.x, torch.tensor([1.0, 1e5]))
    for ratio in (1e-20, 1e-100, 1e-200, 1e-300):
        J = torch.tensor([[1.0, 0.0], [1.0, ratio], [0.0, 2 * ratio]], dtype=DOUBLE)
        s = least_squares(J).solve(J @ torch.tensor([1.0, 1e-3 / ratio], dtype=DOUBLE))
        torch.testing.assert_close(s.x * torch.tensor([1.0, ratio], dtype=DOUBLE),
                                   torch.tensor([1.0, 1e-3], dtype=DOUBLE))  # fmt: skip


@pytest.mark.parametrize("ratio", [1.0, 1e-20])
@pytest.mark.parametrize("shape", [(20, 6), (7, 6), (4, 9)], ids=str)
def test_what_the_residuals_do_not_depend_on_stays(shape, ratio):
    J = random_(*shape, seed=3)
    J[:, 1:4] = 0.0
    J[:, 0] *= ratio
    s = least_squares(J).solve(random_(len(J), seed=4))
    assert not s.x[1:4].any()
    assert s.x[0] != 0


def test_many_columns_of_unlike_norms_are_solved_as_far_as_the_common_algorithm_can():
    scales = torch.logspace(0, -15, 520, dtype=DOUBLE)
    J = random_(530, 520, seed=0) * scales
    values = least_squares(J).singular_values
    assert torch.isfinite(values).all()
    assert 300 < int((values > 0).sum()) < 520


@pytest.mark.parametrize("shape", [(2, 2), (5, 2), (2, 5)], ids=str)
def test_what_is_given_is_left_alone(shape):
    J = torch.ones(shape)
    before, r = J.clone(), torch.ones(len(J))
    least_squares(before).solve(r)
    assert torch.equal(before, J)
    assert torch.equal(r, torch.ones(len(J)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: least_squares(torch.ones(3)), r"\(m, n\) .* got \(3,\)"),
        (lambda: least_squares(torch.ones(0, 2)), r"got \(0, 2\)"),
        (lambda: least_squares(torch.ones(2, 2).half()), "float16"),
        (lambda: least_squares(torch.eye(2)).solve(torch.ones(3)), r"\(2,\) .* got \(3,\)"),
        (lambda: least_squares(torch.eye(2)).solve(torch.ones(2).double()), "float64"),
        (lambda: least_squares(torch.eye(2)).solve(torch.ones(2), damping=-1.0), "got -1.0"),
        (lambda: least_squares(torch.eye(2)).solve(torch.ones(2), damping=INF), "got inf"),
        (lambda: least_squares(torch.eye(2)).solve(torch.ones(2), radius=0.0), "got 0.0"),
        (lambda: least_squares(torch.eye(2)).solve(torch.ones(2), radius=math.nan), "got nan"),
        (lambda: least_squares(torch.eye(2)).solve(torch.ones(2), rtol=-1.0), "got -1.0"),
    ],
)
def test_errors_say_what_came_and_what_was_wanted(call, message):
    with pytest.raises(ValueError, match=message):
        call()
