"""What a picture of learning curves is drawn from."""

import json

import numpy as np
import pytest

from rl_plugins import UsageError
from rl_plugins.runs import curve, draw_curves


@pytest.fixture
def drawn(monkeypatch):
    """The axes of the last picture."""
    kept = []
    make = curve._axes

    def axes(title):
        kept.append(make(title))
        return kept[-1]

    monkeypatch.setattr(curve, "_axes", axes)
    return kept


def write_run(path, evaluations, task="CartPole-v1", tail=""):
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"algorithm": "trpo", "task": task}))
    lines = [f"{steps},5,{mean},1.0" for steps, mean in evaluations]
    text = "\r\n".join(["steps,episodes,mean_return,deviation", *lines, tail])
    (path / "evaluations.csv").write_text(text, newline="")
    return path


def lines(axes):
    return {
        line.get_label(): (line.get_xdata().tolist(), line.get_ydata().tolist())
        for line in axes.get_lines()
    }


def test_seeds_are_averaged_over_the_steps_that_all_have_reached(tmp_path, drawn):
    """The mean over runs, at the evaluations of the shortest, between neighbours of the others."""
    a = write_run(tmp_path / "a", [(100, 0.0), (300, 20.0), (500, 1000.0)])
    b = write_run(tmp_path / "b", [(100, 4.0), (200, 30.0)])
    c = write_run(tmp_path / "c", [(50, 7.0)], task="Pendulum-v1")
    draw_curves([a, b, c], tmp_path / "out.png")
    assert lines(drawn[0]) == {
        "trpo on CartPole-v1 (2 runs)": ([100.0, 200.0], [2.0, 20.0]),
        "trpo on Pendulum-v1 (1 run)": ([50.0], [7.0]),
    }
    band = drawn[0].collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == 0.0
    assert np.isclose(band[:, 1].max(), 30.0)


@pytest.mark.parametrize("tail", ["300", "300,5", "300,5,", "300,5,-", "300,5,1"])
def test_a_row_that_a_crash_cut_off_is_not_drawn(tail, tmp_path, drawn):
    """ "-" would be no number, "1" of "195.0" another one."""
    draw_curves([write_run(tmp_path / "a", [(100, 2.0)], tail=tail)], tmp_path / "out.png")
    assert lines(drawn[0]) == {"trpo on CartPole-v1 (1 run)": ([100.0], [2.0])}


def test_runs_without_an_evaluation_are_left_out_and_nothing_but_them_is_an_error(tmp_path, drawn):
    empty, blank = write_run(tmp_path / "a", []), write_run(tmp_path / "b", [])
    (blank / "evaluations.csv").unlink()
    with pytest.raises(UsageError, match="nothing to draw"):
        draw_curves([empty, blank], tmp_path / "out.png")
    draw_curves([empty, blank, write_run(tmp_path / "c", [(1, 2.0)])], tmp_path / "out.png")
    assert lines(drawn[0]) == {"trpo on CartPole-v1 (1 run)": ([1.0], [2.0])}


@pytest.mark.parametrize(
    ("name", "start"), [("a.png", b"\x89PNG"), ("plain", b"\x89PNG"), ("a.svg", b"<?xml")]
)
def test_the_picture_is_the_file_that_was_named(name, start, tmp_path):
    run = write_run(tmp_path / "run", [(1, 2.0)])
    draw_curves([run], tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["run", name])


@pytest.mark.parametrize("name", ["a.nothing", "none/a.png", "taken", "run/config.json/a.png"])
def test_where_nothing_can_be_drawn_is_a_usage_error_that_leaves_no_file(name, tmp_path):
    run = write_run(tmp_path / "run", [(1, 2.0)])
    (tmp_path / "taken").mkdir()
    with pytest.raises(UsageError, match="cannot draw into"):
        draw_curves([run], tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "taken"]


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"algorithm": "trpo"}'])
def test_a_damaged_configuration_is_a_usage_error(content, tmp_path):
    run = write_run(tmp_path / "run", [(1, 2.0)])
    (run / "config.json").write_text(content)
    with pytest.raises(UsageError, match=r"config\.json is damaged"):
        draw_curves([run], tmp_path / "out.png")


def test_no_run_at_all_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="name at least one run directory"):
        draw_curves([], tmp_path / "out.png")
