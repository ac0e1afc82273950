import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from natgrad.trust_region import LineSearchStatus, backtracking

NAN = float("nan")


def bits(vector):
    return vector.clone().view(torch.int64)


def assert_nan(*values):
    assert all(map(math.isnan, values)), values


@given(st.floats(0.01, 50), st.floats(0, 0.9), st.floats(0.1, 0.9), st.integers(0, 30))
def test_an_accepted_step_satisfies_armijo_when_evaluated_anew(length, ratio, shrink, tries):
    """½ x² from 1 along −length: the expected improvement of the whole step is its length."""
    start, step = torch.ones(1).double(), torch.tensor([-length]).double()
    result = backtracking(
        lambda x: (0.5 * (x @ x), 0.0), start, step,
        expected_improvement=length, accept_ratio=ratio, shrink=shrink, max_backtracks=tries,
    )  # fmt: skip
    if result.accepted:
        assert torch.equal(result.theta, torch.add(start, step, alpha=result.fraction))
        assert result.objective == 0.5 * float(result.theta @ result.theta)
        decrease = 0.5 - 0.5 * float(result.theta @ result.theta)
        assert decrease > ratio * result.fraction * length - 1e-12
        assert math.isclose(decrease, result.improvement, abs_tol=1e-12)
        # The candidate before it, if there was one, was rightly refused.
        if result.fraction < 1:
            before = 1 - length * result.fraction / shrink
            assert 0.5 - 0.5 * before**2 <= ratio * result.fraction / shrink * length + 1e-12
    else:
        assert result.theta is start
        assert result.fraction == 0
    assert result.evaluations <= tries + 2


@given(st.floats(1e-3, 2))
def test_the_constraint_holds_exactly_at_an_accepted_step(bound):
    result = backtracking(
        lambda x: (-x.sum(), x.norm()), torch.zeros(3), torch.ones(3), bound=bound, shrink=0.7,
        max_backtracks=40,
    )  # fmt: skip
    assert result.accepted
    assert float(result.theta.norm()) <= bound
    assert result.constraint == float(result.theta.norm())


@pytest.mark.parametrize(
    ("evaluate", "status"),
    [
        (lambda x: (NAN, 0.0), LineSearchStatus.NONFINITE),
        (lambda x: (-1.0, NAN), LineSearchStatus.NONFINITE),
        (lambda x: (-math.inf, 0.0), LineSearchStatus.NONFINITE),
        (lambda x: (-1.0, -math.inf), LineSearchStatus.NONFINITE),
        (lambda x: (-1.0, 0.1), LineSearchStatus.CONSTRAINT_VIOLATED),
        (lambda x: (1.0, 0.0), LineSearchStatus.NO_IMPROVEMENT),
        (lambda x: (0.0, 0.0), LineSearchStatus.NO_IMPROVEMENT),
    ],
)
def test_a_rejected_search_names_why_and_returns_the_start_bitwise(evaluate, status):
    start = torch.tensor([-0.0, 1e-320, 3.0]).double()
    before = bits(start)
    result = backtracking(
        evaluate, start, torch.ones(3).double(), start_objective=0.0, max_backtracks=5
    )
    assert result.status is status
    assert not result.accepted
    assert result.theta is start
    assert torch.equal(bits(start), before)
    assert result.evaluations == 6


def test_nan_at_the_start_rejects_without_a_candidate():
    start = torch.ones(1)
    result = backtracking(lambda x: (NAN, 0.0), start, torch.ones(1))
    assert result.status is LineSearchStatus.NONFINITE
    assert result.evaluations == 1
    assert result.theta is start
    assert result.fraction == 0
    assert_nan(result.objective, result.constraint, result.improvement)


def test_an_expectation_that_is_not_finite_rejects():
    start = torch.ones(1)
    result = backtracking(
        lambda x: (-1.0, 0.0), start, torch.ones(1),
        start_objective=2.0, expected_improvement=NAN,
    )  # fmt: skip
    assert result.status is LineSearchStatus.NONFINITE
    assert result.theta is start
    assert (result.fraction, result.objective, result.evaluations) == (0, 2.0, 0)
    assert_nan(result.constraint, result.improvement)


def test_without_an_expectation_any_improvement_is_enough():
    result = backtracking(
        lambda x: (-1e-300, 0.0), torch.ones(1), torch.ones(1), start_objective=0.0
    )
    assert result.accepted
    assert result.improvement == 1e-300


@pytest.mark.parametrize(
    ("step", "status"),
    [
        (torch.zeros(2), LineSearchStatus.ZERO_STEP),
        (torch.tensor([NAN, 1.0]), LineSearchStatus.NONFINITE),
        (torch.tensor([math.inf, 1.0]), LineSearchStatus.NONFINITE),
    ],
)
def test_a_step_that_is_none_costs_no_evaluation(step, status):
    def evaluate(theta):
        raise AssertionError("evaluated")

    start = torch.ones(2)
    result = backtracking(evaluate, start, step)
    assert result.status is status
    assert result.theta is start
    assert (result.fraction, result.evaluations) == (0, 0)
    assert_nan(result.objective, result.constraint, result.improvement)


@given(st.integers(-40, 40))
def test_the_decision_is_free_of_the_objectives_scale(power):
    scale = 10.0**power

    def search(factor):
        return backtracking(
            lambda x: (factor * (x @ x), 0.0), torch.ones(1).double(),
            torch.tensor([-3.0]).double(), expected_improvement=factor * 6,
        )  # fmt: skip

    assert search(scale).fraction == search(1.0).fraction == 0.5


def test_an_uphill_step_is_refused():
    result = backtracking(lambda x: (x @ x, 0.0), torch.ones(1), torch.ones(1))
    assert result.status is LineSearchStatus.NO_IMPROVEMENT
    assert result.evaluations == 12


def test_gradients_are_off_inside_evaluate():
    seen = []

    def evaluate(theta):
        seen.append(torch.is_grad_enabled())
        return theta @ theta, 0.0

    backtracking(evaluate, torch.ones(1), -torch.ones(1))
    assert seen
    assert not any(seen)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shrink": 1.0}, "shrink .* got 1.0"),
        ({"shrink": 0.0}, "shrink .* got 0.0"),
        ({"accept_ratio": 1.0}, "accept_ratio .* got 1.0"),
        ({"max_backtracks": -1}, "got -1"),
        ({"bound": NAN}, "bound must be a number"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        backtracking(lambda x: (0.0, 0.0), torch.ones(1), torch.ones(1), **settings)


def test_a_step_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="alike"):
        backtracking(lambda x: (0.0, 0.0), torch.ones(2), torch.ones(3))


def test_a_point_beyond_the_range_is_never_accepted():
    most = torch.finfo(torch.float64).max
    start = torch.tensor([most, 0.0], dtype=torch.float64)
    step = torch.tensor([most, 1.0], dtype=torch.float64)
    seen = []

    def evaluate(theta):
        seen.append(theta)
        return -theta[0] / 2, 0.0

    result = backtracking(evaluate, start, step, max_backtracks=3)
    assert result.status is LineSearchStatus.NONFINITE
    assert result.theta is start
    assert result.evaluations == 1
    assert all(torch.isfinite(theta).all() for theta in seen)


def test_a_shorter_step_is_tried_where_a_sum_leaves_the_range():
    most = torch.finfo(torch.float64).max
    start, step = torch.tensor([0.9, 0.5], dtype=torch.float64) * most
    arguments = (lambda theta: (-theta[0] / 2, 0.0), start.unsqueeze(0), step.unsqueeze(0))
    result = backtracking(*arguments)
    assert (result.accepted, result.fraction, result.evaluations) == (True, 0.125, 2)
    refused = backtracking(*arguments, max_backtracks=2)
    assert refused.status is LineSearchStatus.NONFINITE
    assert_nan(refused.objective, refused.constraint, refused.improvement)
