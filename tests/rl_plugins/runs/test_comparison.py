"""Runs beside each other: statistics of the field, panels by task."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from rl_plugins import UsageError
from rl_plugins.cli import main
from rl_plugins.runs.comparison import compare_runs, interquartile_mean, read_runs


@pytest.fixture
def runs(tmp_path):
    rng = np.random.default_rng(0)
    paths = []
    for task, algorithm, seeds, level in (
        ("A-v0", "trpo", 5, 100.0), ("A-v0", "ppo", 5, 80.0), ("B-v0", "trpo", 1, 7.0),
    ):  # fmt: skip
        for seed in range(seeds):
            path = tmp_path / f"{task}-{algorithm}-{seed}"
            path.mkdir()
            (path / "config.json").write_text(json.dumps({"task": task, "algorithm": algorithm}))
            lines = ["steps,mean_return"]
            lines += [f"{100 * k},{level * k + rng.normal()}" for k in range(1, 4 + seed % 2)]
            (path / "evaluations.csv").write_text("\n".join(lines) + "\n")
            paths.append(path)
    return paths


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12), st.floats(-1e6, 1e6))
def test_the_mean_moves_with_the_returns_and_lies_in_its_interval(values, shift):
    found = interquartile_mean(np.array(values))
    moved = interquartile_mean(np.array(values) + shift)
    scale = 1e-9 * (1 + max(map(abs, values)) + abs(shift))
    assert moved.value == pytest.approx(found.value + shift, abs=scale)
    assert min(values) - scale <= found.value <= max(values) + scale
    if len(values) > 1:
        assert found.low - scale <= found.value <= found.high + scale
    else:
        assert np.isnan(found.low)


def test_it_is_the_mean_of_the_middle_half():
    assert interquartile_mean(np.array([-1e9, 1.0, 3.0, 1e9])).value == 2.0


def test_the_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(60):
        found = interquartile_mean(rng.normal(size=40))
        hits += found.low <= 0 <= found.high
    # 95 % of 60, and a percentile bootstrap of 40 covers somewhat less: 3.3 σ below 90 %
    assert hits >= 60 * (0.9 + norm.ppf(5e-4) * np.sqrt(0.9 * 0.1 / 60))


def test_runs_are_grouped_by_task_and_algorithm(runs):
    found = read_runs(runs)
    assert [(r.task, r.algorithm, len(r.curves)) for r in found] == [
        ("A-v0", "ppo", 5), ("A-v0", "trpo", 5), ("B-v0", "trpo", 1),
    ]  # fmt: skip
    grid, values = found[1].on_grid()
    estimates = [interquartile_mean(column) for column in values.T]
    assert grid.tolist() == [100, 200, 300]
    assert [round(e.value / 100) for e in estimates] == [1, 2, 3]


def test_the_command_prints_a_table_and_draws_a_panel_a_task(runs, tmp_path, capsys):
    out = tmp_path / "curves.png"
    assert main(["compare", *map(str, runs), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "interquartile mean over seeds [95% bootstrap interval]" in text
    rows = [line for line in text.splitlines() if "A-v0" in line or "B-v0" in line]
    assert len(rows) == 3
    assert "[" not in rows[2]  # one seed has no interval
    assert out.read_bytes().startswith(b"\x89PNG")


def test_nothing_to_compare_is_said(runs, tmp_path):
    for paths, message in (([], "name at least one"), ([tmp_path], r"no config\.json")):
        with pytest.raises(UsageError, match=message):
            compare_runs(paths)
    (runs[-1] / "evaluations.csv").unlink()
    with pytest.raises(UsageError, match="evaluated yet"):
        compare_runs(runs[-1:])
