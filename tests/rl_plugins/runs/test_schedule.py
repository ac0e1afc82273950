"""Evaluations and checkpoints are evenly spaced, and leave episodes time to end."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_plugins.runs.schedule import Schedule
from rl_plugins.runs.settings import RunSettings


def saved(run, limit):
    schedule = Schedule(run, limit)
    updates = -(-run.total_steps // (run.environments * run.rollout_length))
    return [u for u in range(1, updates + 1) if schedule.saves_after(u)]


@given(st.integers(1, 400), st.integers(0, 500))
def test_they_are_as_many_as_asked_and_as_even_as_updates_are(updates, count):
    run = RunSettings(
        total_steps=updates, environments=1, rollout_length=1, checkpoints=count, evaluations=count
    )
    schedule = Schedule(run, None)
    found = saved(run, None)
    assert [u for u in range(1, updates + 1) if schedule.evaluates_after(u)] == found
    assert found == sorted({updates * k // (count + 1) for k in range(1, count + 1)} - {0})


def test_where_it_may_choose_they_lie_three_step_limits_apart():
    def run(total):
        return RunSettings(total_steps=total, environments=16, rollout_length=128)

    assert len(saved(run(1_000_000), 1000)) == 4
    assert saved(run(60_000), 1000) == []  # 3,750 steps of each copy: one stretch
    assert len(saved(run(60_000), 200)) == 4
    assert len(saved(run(60_000), None)) == 4
    for total in (60_000, 120_000, 200_000, 300_000):
        updates = [0, *saved(run(total), 1000), -(-total // 2048)]
        gaps = [b - a for a, b in pairwise(updates)]
        assert min(gaps) * 128 >= 3 * 1000 - 128


def test_who_asks_for_a_number_gets_it():
    run = RunSettings(total_steps=1000, environments=2, rollout_length=50, checkpoints=3)
    assert len(saved(run, 10_000)) == 3


@pytest.mark.parametrize("count", [2**31 - 1, 2**31])
def test_any_number_is_no_work(count):
    run = RunSettings(total_steps=1000, environments=1, rollout_length=1, checkpoints=count)
    assert len(saved(run, None)) == 1000 - 1
