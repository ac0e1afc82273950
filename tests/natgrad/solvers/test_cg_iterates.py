"""The iterates that cg keeps for a search along them: those of runs that were cut short there."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from natgrad.solvers import Iterate, Status, cg, relative_progress
from natgrad.testing.strategies import spd_matrices, symmetric_matrices, vectors_like

SEEDS = st.integers(0, 2**31 - 1)
GROWTHS = st.floats(1.01, 3.0)
DOUBLE = torch.float64


def kept_at(growth, iterations):
    """1, and from there γ times further each time, but at least 1 further; of whole iterations."""
    found, due = [], 1.0
    for iteration in range(1, iterations + 1):
        if iteration >= due:
            found.append(iteration)
            due = max(due * growth, iteration + 1.0)
    return found


def assert_truncated(solution, A, b, growth, iterations=None, **settings):
    """Each iterate is that of a run with so many iterations, bit for bit."""
    counts = kept_at(growth, solution.iterations if iterations is None else iterations)
    assert len(solution.iterates) == len(counts)
    for iterate, count in zip(solution.iterates, counts, strict=True):
        assert torch.equal(iterate.x, cg(A, b, max_iterations=count, **settings).x)


@settings(max_examples=40)
@given(spd_matrices(max_size=20), SEEDS, GROWTHS)
def test_they_are_the_answers_of_runs_that_end_there(A, seed, growth):
    b = vectors_like(A, seed=seed)
    s = cg(A, b, rtol=1e-4, iterate_growth=growth)
    assert_truncated(s, A, b, growth, rtol=1e-4)
    assert torch.equal(s.x, cg(A, b, rtol=1e-4).x)
    for x, xAx in s.iterates:
        expected = float(x.double() @ (A.double() @ x.double()))
        assert xAx.dtype == DOUBLE
        eps = torch.finfo(A.dtype).eps
        assert math.isclose(float(xAx), expected, rel_tol=1e3 * eps, abs_tol=0.0)


@settings(max_examples=20)
@given(spd_matrices(max_size=12, dtypes=(DOUBLE,)), SEEDS)
def test_the_model_falls_and_the_length_grows_along_them(A, seed):
    b = vectors_like(A, seed=seed)
    iterates = cg(A, b, rtol=1e-8, iterate_growth=1.3).iterates
    models = [float(xAx / 2 - b @ x) for x, xAx in iterates]
    lengths = [float(x.norm()) for x, _ in iterates]
    floor = 1e-12 * abs(models[-1])
    assert all(right <= left + floor for left, right in itertools.pairwise(models))
    assert all(left <= right * (1 + 1e-12) for left, right in itertools.pairwise(lengths))


def ill_conditioned(n=40, dtype=DOUBLE):
    return torch.diag(torch.logspace(0, 4, n, dtype=dtype)), torch.ones(n, dtype=dtype)


@pytest.mark.parametrize("growth", [1.1, 1.3, 2.0])
def test_there_are_ln_k_over_ln_growth_of_them(growth):
    A, b = ill_conditioned()
    s = cg(A, b, rtol=0.0, max_iterations=300, iterate_growth=growth)
    assert len(s.iterates) == len(kept_at(growth, s.iterations))
    # One an iteration until γ takes it further, then each γ times as far.
    steps = math.ceil(1 / (growth - 1))
    assert len(s.iterates) <= steps + math.log(s.iterations) / math.log(growth) + 1


def test_none_are_kept_unless_asked_for():
    A, b = ill_conditioned()
    assert cg(A, b).iterates == ()
    assert cg(A, torch.zeros_like(b), iterate_growth=1.3).iterates == ()
    assert cg(A, b, max_iterations=0, iterate_growth=1.3).iterates == ()


def test_from_a_start_and_with_a_preconditioner_they_are_those_of_that_run():
    A, b = ill_conditioned()
    given = {
        "x0": b / A.diagonal() * torch.linspace(0.5, 2, len(b), dtype=DOUBLE),
        "preconditioner": lambda v: v / A.diagonal().sqrt(),
        "rtol": 1e-8,
    }
    s = cg(A, b, iterate_growth=1.3, **given)
    assert s.iterations > 5
    assert_truncated(s, A, b, 1.3, **given)
    for x, xAx in s.iterates:
        assert float(xAx) == pytest.approx(float(x @ A @ x), rel=1e-9)


def test_a_rule_that_stops_the_solve_stops_them_too():
    A, b = ill_conditioned()
    s = cg(A, b, rtol=0.0, stop=relative_progress(1e-2, window=3), iterate_growth=1.3)
    assert s.status is Status.STOPPED
    assert_truncated(s, A, b, 1.3, rtol=0.0)


@pytest.mark.parametrize("check_every", [2, 5, 100])
def test_rare_checks_keep_no_other_points(check_every):
    """Idle iterations may repeat the answer."""
    A, b = ill_conditioned()
    often = cg(A, b, rtol=1e-8, iterate_growth=1.3)
    rarely = cg(A, b, rtol=1e-8, iterate_growth=1.3, check_every=check_every)
    assert torch.equal(often.x, rarely.x)
    common = len(often.iterates)
    for left, right in zip(often.iterates, rarely.iterates[:common], strict=True):
        assert torch.equal(left.x, right.x)
        assert torch.equal(left.xAx, right.xAx)
    assert all(torch.equal(iterate.x, often.x) for iterate in rarely.iterates[common:])


@settings(max_examples=40)
@given(symmetric_matrices(max_size=8), SEEDS, st.sampled_from([1, 3]))
def test_where_curvature_is_negative_the_last_is_the_one_before(A, seed, check_every):
    """The step along such a direction goes up the model: it is no iterate."""
    b = vectors_like(A, seed=seed)
    s = cg(A, b, rtol=1e-12, iterate_growth=1.01, check_every=check_every)
    if s.status is Status.NEGATIVE_CURVATURE:
        points = [iterate.x for iterate in s.iterates if iterate.x.any()]
        assert all(torch.isfinite(point).all() for point in points)
        assert torch.equal(points[-1], s.x) if points else not s.x.any()


@pytest.mark.parametrize("fail_at", [1, 2, 4])
@pytest.mark.parametrize("check_every", [1, 3])
def test_a_product_that_is_not_finite_is_in_none_of_them(fail_at, check_every):
    A, b = ill_conditioned()
    calls = 0

    def multiply(v):
        nonlocal calls
        calls += 1
        return A @ v if calls < fail_at else v * math.nan

    s = cg(multiply, b, iterate_growth=1.01, check_every=check_every)
    assert s.status is Status.NONFINITE
    assert all(torch.isfinite(iterate.x).all() for iterate in s.iterates)
    found = [iterate.x for iterate in s.iterates if iterate.x.any()]
    for count in range(1, fail_at):
        assert torch.equal(found[count - 1], cg(A, b, max_iterations=count).x)
    assert all(torch.equal(point, s.x) for point in found[fail_at - 1 :])


@settings(max_examples=20)
@given(spd_matrices(max_size=10), SEEDS, st.integers(-30, 30), st.integers(-30, 30))
def test_powers_of_two_change_nothing_but_the_scale(A, seed, a_power, b_power):
    a, c = 2.0**a_power, 2.0**b_power
    b = vectors_like(A, seed=seed)
    plain, scaled = (
        cg(M, v, rtol=1e-3, iterate_growth=1.3).iterates for M, v in ((A, b), (A * a, b * c))
    )
    for left, right in zip(plain, scaled, strict=True):
        assert torch.equal(left.x * (c / a), right.x)
        assert torch.equal(left.xAx * (c * c / a), right.xAx)


def test_they_come_in_the_kind_of_b_and_column_by_column():
    A, b = ill_conditioned(12)
    expected = cg(A, b, iterate_growth=1.3).iterates
    found = cg(A.numpy(), b.numpy(), iterate_growth=1.3).iterates
    assert len(found) == len(expected)
    for left, right in zip(found, expected, strict=True):
        assert isinstance(left, Iterate)
        assert isinstance(left.x, np.ndarray)
        assert np.array_equal(left.x, right.x.numpy())
        assert float(left.xAx) == float(right.xAx)
    matrix = torch.stack([b, 3 * b.flip(0)], dim=1)
    kinds: tuple[Any, Any] = (matrix, matrix.numpy())
    for kind in kinds:
        s = cg(A, kind, iterate_growth=1.3)
        for column, b_ in zip(s.columns, matrix.mT, strict=True):
            alone = cg(A, b_.contiguous(), iterate_growth=1.3)
            assert len(column.iterates) == len(alone.iterates)
            for left, right in zip(column.iterates, alone.iterates, strict=True):
                assert isinstance(left.x, type(kind))
                assert np.allclose(left.x, right.x, rtol=1e-12)


@pytest.mark.parametrize("growth", [1.0, 0.5, math.nan])
def test_a_growth_that_does_not_grow_is_refused(growth):
    with pytest.raises(ValueError, match="iterate_growth must be above 1, got"):
        cg(torch.eye(2), torch.ones(2), iterate_growth=growth)
