"""Reduction ratio, radius and damping."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from natgrad.trust_region import reduction_ratio, update_damping, update_radius

NAN, INF = math.nan, math.inf
RATIOS = st.one_of(st.floats(), st.sampled_from([NAN, INF, -INF]))


# Millionths, not any float: what the test itself computes must not underflow when it is scaled.
UP_TO_TEN = st.integers(-(10**7), 10**7).map(lambda millionths: millionths / 10**6)


@given(UP_TO_TEN, st.floats(1e-3, 10), UP_TO_TEN, st.integers(-200, 200))
def test_the_ratio_is_that_of_the_reductions_at_any_scale_of_the_objective(f, q, rho, power):
    scale = 2.0**power
    expected = reduction_ratio(f, f - rho * q, q)
    assert math.isclose(expected, rho, rel_tol=1e-8, abs_tol=1e-8)
    assert reduction_ratio(scale * f, scale * (f - rho * q), scale * q) == expected


@given(st.floats(1e-6, 1e6), st.floats(-3, 3), st.floats(0, 3))
def test_reductions_that_are_rounding_count_as_agreement(f, actual, predicted):
    ulp = math.ulp(f)
    assert abs(reduction_ratio(f, f - actual * ulp, predicted * ulp) - 1) < 0.02


def test_the_guard_is_a_thousand_epsilon_of_the_larger_value():
    assert reduction_ratio(1.0, 0.0, 0.0, epsilon=1e-3) == 2  # (1 + 1) / (0 + 1)
    assert reduction_ratio(0.0, -1.0, 0.0, epsilon=1e-3) == 2


@given(st.floats(-10, 10))
def test_what_is_not_finite_or_promises_nothing_is_rejected(f):
    for bad in (NAN, INF, -INF):
        assert reduction_ratio(f, bad, 1.0) == -INF
        assert reduction_ratio(bad, f, 1.0) == -INF
        assert reduction_ratio(f, f - 1, bad) == -INF
    assert reduction_ratio(f, f - 1, -1.0) == -INF
    assert reduction_ratio(0.0, 0.0, 0.0) == -INF


@given(st.floats(1e-6, 1e6), RATIOS, st.booleans())
@example(1.0, 0.25, True)
@example(1.0, 0.75, True)
@example(1.0, 0.9, True)
def test_the_radius_follows_the_ratio(radius, ratio, at_boundary):
    new = update_radius(radius, ratio, at_boundary=at_boundary, maximum=1e6)
    if ratio > 0.75 and at_boundary:
        assert new == min(2 * radius, 1e6)
    elif ratio >= 0.25:
        assert new == radius
    else:  # NaN included
        assert new == radius / 4


def test_a_step_counts_as_one_to_the_boundary_where_nothing_is_said():
    assert update_radius(1.0, 0.9) == 2.0


@given(st.floats(0, 1e6), RATIOS)
@example(1.0, 0.25)
@example(1.0, 0.75)
@example(1.0, 0.9)
def test_the_damping_follows_the_ratio(damping, ratio):
    new = update_damping(damping, ratio, minimum=1e-3, maximum=1e5)
    if ratio > 0.75:
        damping /= 1.5
    elif not ratio >= 0.25:
        damping *= 1.5
    assert new == min(max(damping, 1e-3), 1e5)


def test_up_and_down_undo_each_other():
    assert update_damping(update_damping(0.7, 0.0), 1.0) == pytest.approx(0.7, rel=1e-15)


def test_settings_at_the_ends_of_their_ranges_are_taken():
    assert update_radius(1.0, 0.0, low=0.0) == 1.0
    assert update_radius(1.0, 0.9, growth=1.0) == 1.0
    assert update_radius(1.0, 0.9, maximum=1.0) == 1.0
    assert update_damping(1.0, 0.0, low=0.0) == 1.0
    assert update_damping(1.0, 0.0, minimum=2.0, maximum=2.0) == 2.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: update_radius(0.0, 1.0), "radius must be finite, above 0"),
        (lambda: update_radius(NAN, 1.0), "got nan"),
        (lambda: update_radius(2.0, 1.0, maximum=1.0), "at most 1.0, got 2.0"),
        (lambda: update_radius(1.0, 1.0, shrink=0.0), "shrink=0.0"),
        (lambda: update_radius(1.0, 1.0, shrink=1.0), "shrink=1.0"),
        (lambda: update_radius(1.0, 1.0, low=0.75), "low=0.75"),
        (lambda: update_damping(-1.0, 1.0), "damping must be finite and >= 0, got -1.0"),
        (lambda: update_damping(1.0, 1.0, factor=1.0), "factor=1.0"),
        (lambda: update_damping(1.0, 1.0, low=0.75), "low=0.75"),
    ],
)
def test_settings_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_radius_stays_a_positive_number():
    assert 0 < update_radius(5e-324, 0.0) < 1e-300
    assert update_radius(1e308, 1.0) < math.inf
