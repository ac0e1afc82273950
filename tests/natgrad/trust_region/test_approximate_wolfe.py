"""The conditions of a line search, checked anew at what it accepts."""

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.interpolate import CubicHermiteSpline

from natgrad.trust_region import WolfeStatus, approximate_wolfe

NAN, INF = math.nan, math.inf
SETTINGS: dict[str, Any] = {"decrease": 0.1, "curvature": 0.9, "tolerance": 1e-6}


@dataclass
class Wave:
    """φ(α) = c (h (α − m)² / 2 + a sin(ω α + p)) + offset; not finite beyond ``edge``."""

    h: float = 1.0
    m: float = 3.0
    a: float = 0.0
    omega: float = 1.0
    p: float = 0.0
    c: float = 1.0
    offset: float = 0.0
    edge: float = INF
    bad: float = NAN
    calls: list[float] = field(default_factory=list)

    def at(self, alpha: float) -> tuple[float, float]:
        angle = self.omega * alpha + self.p
        value = self.h * (alpha - self.m) * (alpha - self.m) / 2 + self.a * math.sin(angle)
        slope = self.h * (alpha - self.m) + self.a * self.omega * math.cos(angle)
        return self.c * value + self.offset, self.c * slope

    def __call__(self, alpha: float) -> tuple[float, float]:
        self.calls.append(alpha)
        return (self.bad, self.bad) if alpha > self.edge else self.at(alpha)

    def search(self, initial: float, **given):
        self.calls.clear()
        value, slope = self.at(0.0)
        return approximate_wolfe(self, initial=initial, value=value, slope=slope, **given)


WAVES = st.builds(
    Wave,
    h=st.floats(0.1, 10),
    m=st.floats(0.5, 5),
    a=st.floats(-3, 3),
    omega=st.floats(0.1, 10),
    p=st.floats(-math.pi, math.pi),
    offset=st.sampled_from([0.0, 10.0, -10.0]),
).filter(lambda wave: wave.at(0.0)[1] < -1e-3)
LENGTHS = st.floats(-6, 4).map(lambda power: 10.0**power)


def holds(wave, alpha, decrease=0.1, curvature=0.9, tolerance=1e-6):
    """Wolfe's conditions at α, or Hager and Zhang's approximation of them."""
    (start, slope), (value, there) = wave.at(0.0), wave.at(alpha)
    wolfe = value - start <= decrease * alpha * slope
    flat = (2 * decrease - 1) * slope >= there and value <= start + tolerance * abs(start)
    return there >= curvature * slope and (wolfe or flat)


@settings(max_examples=200)
@given(WAVES, LENGTHS, st.sampled_from([1, 2, 5, 40]))
@example(Wave(a=3.0, omega=10.0, p=math.pi), 1e4, 40)
def test_what_is_accepted_satisfies_the_conditions(wave, initial, budget):
    found = wave.search(initial, max_evaluations=budget)
    assert found.evaluations == len(wave.calls) <= budget
    assert wave.calls[0] == initial
    assert (found.value, found.slope) == wave.at(found.alpha)
    if found.status is WolfeStatus.ACCEPTED:
        assert found.alpha in wave.calls
        assert holds(wave, found.alpha)
        assert not any(holds(wave, alpha) for alpha in wave.calls if alpha != found.alpha)
    elif found.status is WolfeStatus.MAX_EVALUATIONS:
        assert found.accepted
        assert found.value == min(wave.at(alpha)[0] for alpha in wave.calls) < wave.at(0.0)[0]
    else:
        assert found.status is WolfeStatus.NO_IMPROVEMENT
        assert (found.alpha, found.accepted) == (0.0, False)


@settings(max_examples=100)
@given(WAVES, LENGTHS)
def test_smooth_functions_bounded_below_are_always_solved(wave, initial):
    assert wave.search(initial, max_evaluations=60).status is WolfeStatus.ACCEPTED


@pytest.mark.parametrize(("decrease", "curvature"), [(1e-4, 1e-3), (1e-4, 0.1), (0.4, 0.4)])
@pytest.mark.parametrize("initial", [1e-6, 1.0, 3.0, 50.0])
def test_tighter_conditions_come_closer_to_the_minimum(initial, decrease, curvature):
    wave = Wave(a=1.0, omega=2.0)
    found = wave.search(initial, decrease=decrease, curvature=curvature, max_evaluations=60)
    assert found.status is WolfeStatus.ACCEPTED
    assert holds(wave, found.alpha, decrease, curvature)


@settings(max_examples=100)
@given(WAVES, LENGTHS, st.integers(-200, 200))
def test_powers_of_two_change_no_bit(wave, initial, power):
    plain = wave.search(initial)
    scaled = Wave(
        **{**vars(wave), "c": 2.0**power, "offset": wave.offset * 2.0**power, "calls": []}
    )
    found = scaled.search(initial)
    assert scaled.calls == wave.calls[: len(scaled.calls)]
    assert (found.alpha, found.status) == (plain.alpha, plain.status)
    assert (found.value, found.slope) == (plain.value * 2.0**power, plain.slope * 2.0**power)


@settings(max_examples=100)
@given(WAVES, LENGTHS, st.floats(-3, 0.5), st.sampled_from([NAN, INF, -INF]))
def test_what_is_not_finite_is_only_too_far(wave, initial, log10_edge, bad):
    wave.edge, wave.bad = 10.0**log10_edge, bad
    found = wave.search(initial, max_evaluations=60)
    assert found.evaluations <= 60
    assert math.isfinite(found.value)
    assert 0 <= found.alpha <= wave.edge
    if found.status is WolfeStatus.ACCEPTED:
        assert holds(wave, found.alpha)
    else:
        # The function still falls at the edge of its domain, or this would be a minimum inside.
        assert found.status is WolfeStatus.MAX_EVALUATIONS
        assert wave.at(wave.edge)[1] < 0


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_value_or_a_slope_alone_may_be_bad(bad, which):
    def evaluate(alpha):
        pair = [(alpha - 3) ** 2, 2 * (alpha - 3)]
        if alpha > 1:
            pair[which] = bad
        return tuple(pair)

    found = approximate_wolfe(evaluate, initial=10.0, value=9.0, slope=-6.0)
    assert found.status is WolfeStatus.ACCEPTED
    assert 0 < found.alpha <= 1


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_where_nothing_is_finite_that_is_said(bad):
    found = Wave(edge=0.0, bad=bad).search(1.0, max_evaluations=7)
    assert found.status is WolfeStatus.NONFINITE
    assert (found.alpha, found.accepted, found.evaluations) == (0.0, False, 7)
    assert (found.value, found.slope) == Wave().at(0.0)


def test_near_a_minimum_slopes_decide_where_values_are_rounding():
    """1 + 1e-20 (α − 1)²: every value is 1, and Armijo's condition cannot hold."""
    found = approximate_wolfe(
        lambda alpha: (1 + 1e-20 * (alpha - 1) ** 2, 2e-20 * (alpha - 1)),
        initial=1e-3, value=1.0, slope=-2e-20,
    )  # fmt: skip
    assert found.status is WolfeStatus.ACCEPTED
    assert abs(found.alpha - 1) <= 0.9


def test_a_function_that_only_rises_is_refused():
    found = approximate_wolfe(lambda alpha: (1 + alpha, 1.0), initial=1.0, value=1.0, slope=-1.0)
    assert found.status is WolfeStatus.NO_IMPROVEMENT
    assert (found.alpha, found.value, found.slope) == (0.0, 1.0, -1.0)


@pytest.mark.parametrize("halves", [1, 8, 9])
def test_an_improvement_within_four_roundings_is_none(halves):
    """Refused: then α is 0, and value and slope those of the start."""
    below = 1 - halves * 2.0**-53
    found = approximate_wolfe(lambda alpha: (below, -1.0), initial=1.0, value=1.0, slope=-1.0)
    if halves <= 8:
        assert found.status is WolfeStatus.NO_IMPROVEMENT
        assert (found.alpha, found.value, found.slope) == (0.0, 1.0, -1.0)
    else:
        assert found.status is WolfeStatus.MAX_EVALUATIONS
        assert (found.alpha, found.value) == (1.0, below)  # the first of those as low


def test_a_function_without_bound_is_followed_as_far_as_the_budget_goes():
    found = approximate_wolfe(lambda alpha: (-alpha, -1.0), initial=1.0, value=0.0, slope=-1.0)
    assert found.status is WolfeStatus.MAX_EVALUATIONS
    assert found.evaluations == 40
    assert found.alpha == pytest.approx(5.0**39)


def script(points, *, initial=1.0, value=0.0, slope=-1.0, **given):
    """A search that is told φ and φ′ at each length it should ask for, in this order."""
    asked = []

    def evaluate(alpha):
        asked.append(alpha)
        return points[alpha]

    found = approximate_wolfe(
        evaluate, initial=initial, value=value, slope=slope, **{"tolerance": 0.0, **given}
    )
    assert asked == list(points)
    assert found.evaluations == len(asked)
    return found


def test_a_point_above_the_ceiling_is_bisected_away():
    found = script({
        1.0: (-1.0, -1.0), 5.0: (1.0, -1.0),  # it still falls, but from too high: U3 between them
        3.0: (0.0, -1.0), 4.0: (1.0, -1.0),  # at the ceiling, above it
        3.5: (NAN, 0.0), 3.25: (2.0, 0.5),  # beyond, rising
        4.75 / 1.5: (-1.0, 0.0),  # the secant of 3 and 3.25
    })  # fmt: skip
    assert (found.alpha, found.status) == (4.75 / 1.5, WolfeStatus.ACCEPTED)


def test_what_is_not_finite_bounds_the_bracket():
    nothing = (NAN, NAN)
    script({
        1.0: nothing, 0.5: nothing, 0.25: (-1.0, -1.0), 0.375: (-1.0, -1.0), 0.4375: (-1.0, 0.0)
    })  # fmt: skip
    script({1.0: (0.0, -1.0), 5.0: nothing, 3.0: nothing, 2.0: (-1.0, 0.0)})


def test_a_secant_is_followed_by_one_from_the_end_that_it_moved():
    script({1.0: (-1.0, -1.0), 5.0: (1.0, 1.0), 3.0: (1.0, 0.25), 1.75 / 0.75: (-1.0, 0.0)})
    script({1.0: (-1.0, -2.0), 5.0: (1.0, 2.0), 3.0: (0.0, -0.95), 5.05 / 1.05: (-1.0, 0.0)})


@pytest.mark.parametrize("slope", [1e20, 0.0])
def test_a_secant_that_leads_to_an_end_gives_way_to_bisection(slope):
    script({1.0: (-1.0, -1.0), 5.0: (1.0, slope), 3.0: (-1.0, 0.0)})
    # Halving is enough: the next is a secant again, (3 + 3) / 4.
    script({1.0: (-1.0, -1.0), 5.0: (1.0, slope), 3.0: (1.0, 3.0), 1.5: (-1.0, 0.0)})


def test_an_interval_that_shrinks_by_less_than_a_third_is_bisected():
    script({
        1.0: (-1.0, -14.0), 5.0: (1.0, 2.0), 4.5: (1.0, 1.0), 4.0: (1.0, 0.25), 2.5: (-1.0, 0.0)
    })  # fmt: skip


@pytest.mark.parametrize("falls", [lambda alpha: alpha <= 3, lambda alpha: alpha < 3])
@pytest.mark.parametrize("beyond", [(1.0, -1.0), (1.0, 1.0), (NAN, NAN)])
def test_a_jump_is_bisected_until_no_number_lies_between(falls, beyond):
    asked = []

    def evaluate(alpha):
        asked.append(alpha)
        return (-1.0, -1.0) if falls(alpha) else beyond

    found = approximate_wolfe(evaluate, initial=1.0, value=0.0, slope=-1.0, max_evaluations=200)
    assert found.status is WolfeStatus.MAX_EVALUATIONS
    assert found.evaluations == len(asked) == len(set(asked)) > 50


@pytest.mark.parametrize(
    ("point", "accepted"),
    [
        ((-0.25, -0.75), True), ((-0.25, -0.76), False),  # φ′ >= σ φ′(0)
        ((-0.25, 9.0), True), ((-0.24, 9.0), False),  # φ <= φ(0) + δ α φ′(0)
        ((0.0, 0.5), True), ((0.0, 0.51), False), ((0.01, 0.5), False),  # or the approximation
    ],
)  # fmt: skip
def test_each_condition_includes_its_bound(point, accepted):
    found = script({1.0: point}, decrease=0.25, curvature=0.75, max_evaluations=1)
    assert (found.status is WolfeStatus.ACCEPTED) is accepted


@pytest.mark.parametrize("initial", [1e-200, 1e-30, 1e30, 1e200])
def test_the_first_length_may_be_off_by_many_orders(initial):
    """By 5 a step upward, by 2 downward, and within the budget or with an honest status."""
    found = Wave().search(initial, max_evaluations=1500)
    assert found.status is WolfeStatus.ACCEPTED
    assert holds(Wave(), found.alpha)
    short = Wave().search(initial, max_evaluations=10)
    assert short.evaluations <= 10
    assert short.status is not WolfeStatus.ACCEPTED or holds(Wave(), short.alpha)


@pytest.mark.parametrize(
    "given",
    [
        {"slope": 0.0}, {"slope": 1.0}, {"slope": NAN}, {"slope": -INF}, {"value": NAN},
        {"value": INF}, {"initial": 0.0}, {"initial": -1.0}, {"initial": INF}, {"initial": NAN},
        {"decrease": 0.0}, {"decrease": 0.5}, {"decrease": 0.3, "curvature": 0.2},
        {"curvature": 1.0}, {"tolerance": -1e-9}, {"tolerance": NAN}, {"max_evaluations": 0},
    ],
    ids=str,
)  # fmt: skip
def test_settings_out_of_range_are_refused_before_any_evaluation(given):
    wave = Wave()
    with pytest.raises(ValueError, match=r"expected .*, got .*"):
        approximate_wolfe(wave, **{"initial": 1.0, "value": 4.5, "slope": -3.0, **given})
    assert not wave.calls


def test_beyond_a_crest_the_interval_goes_back_to_where_it_falls():
    """U3: the secant of 0 and 1 is 0.6, where φ falls again, but from above the ceiling: what lies
    between 0.6 and 1 stays above it, and the point to accept is on this side of the crest."""
    phi = CubicHermiteSpline(
        [0.0, 0.1, 0.4, 0.6, 1.0], [0.0, -0.05, 0.5, 0.3, 0.2], [-1.0, 0.0, 0.0, -0.5, 2 / 3]
    )
    slope_of, tried = phi.derivative(), []

    def evaluate(alpha):
        tried.append(alpha)
        return float(phi(alpha)), float(slope_of(alpha))

    found = approximate_wolfe(evaluate, initial=1.0, value=0.0, slope=-1.0, **SETTINGS)
    assert tried[:2] == [1.0, pytest.approx(0.6)]
    assert found.status is WolfeStatus.ACCEPTED
    assert found.alpha < 0.4
    assert found.value < 0
