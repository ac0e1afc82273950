"""Runs that differ in the task are no seeds of one another."""

import json

import pytest

from rl_plugins.runs.comparison import read_runs
from rl_plugins.runs.recorded import shown_task


@pytest.mark.parametrize(
    ("run", "shown"),
    [
        ({}, "T-v0"),
        ({"env_kwargs": {}, "wrappers": []}, "T-v0"),
        ({"env_kwargs": {"length": 15}, "seed": 3}, "T-v0 (length=15)"),
        ({"env_kwargs": {"a": 1}, "wrappers": ["m:W"]}, "T-v0 (a=1, m:W)"),
        ({"env_kwargs": 3, "wrappers": 4}, "T-v0"),
    ],
)
def test_arguments_and_wrappers_belong_to_the_task(run, shown):
    assert shown_task({"task": "T-v0", "run": run}) == shown


def test_a_comparison_keeps_them_apart(tmp_path):
    for length in (10, 15):
        path = tmp_path / str(length)
        path.mkdir()
        config = {"task": "T-v0", "algorithm": "a2c", "run": {"env_kwargs": {"length": length}}}
        (path / "config.json").write_text(json.dumps(config))
        (path / "evaluations.csv").write_text("steps,mean_return\n1,2.0\n")
    found = read_runs(sorted(tmp_path.iterdir()))
    assert [each.task for each in found] == ["T-v0 (length=10)", "T-v0 (length=15)"]
    assert all(len(each.curves) == 1 for each in found)
