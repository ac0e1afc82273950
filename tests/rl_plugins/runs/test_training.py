import csv
import dataclasses
import io
import json
import math
import signal
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from rl_plugins import TRPOConfig, UsageError, evaluate_run, train
from rl_plugins.agents import TRPOAgent
from rl_plugins.errors import ExperienceError
from rl_plugins.plugin import find_plugin, registered_plugins
from rl_plugins.policies import Sampling
from rl_plugins.runs import RunOutcome, RunSettings, evaluate, resolve, tuned_settings

QUICK: dict[str, Any] = {
    "total_steps": 600,
    "environments": 3,
    "rollout_length": 64,
    "hidden_sizes": (8,),
}


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(
        "trpo", "CartPole-v1", run_dir=tmp_path_factory.mktemp("runs") / "a", seed=7,
        evaluations=2, evaluation_episodes=6, **QUICK,
    )  # fmt: skip


def test_a_finished_run_leaves_everything_that_it_promises(run):
    names = {path.name for path in run.directory.iterdir() if not path.name.startswith("events")}
    assert names == {"config.json", "progress.csv", "evaluations.csv", "checkpoint.pt", "best.pt",
                     "outcome.json", "curve.png"}  # fmt: skip
    assert any(path.name.startswith("events") for path in run.directory.iterdir())
    assert run.outcome is RunOutcome.FINISHED
    outcome = json.loads((run.directory / "outcome.json").read_text())
    assert outcome["outcome"] == "finished"
    assert outcome["steps"] == run.steps == 600
    assert outcome["mean_return"] == run.evaluation.mean
    assert (run.directory / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_configuration_holds_every_setting(run):
    config = json.loads((run.directory / "config.json").read_text())
    assert (config["algorithm"], config["task"]) == ("trpo", "CartPole-v1")
    assert config["run"]["seed"] == 7
    assert set(config["run"]) == set(RunSettings.__dataclass_fields__)
    assert set(config["config"]) == set(TRPOConfig.__dataclass_fields__)
    assert config["versions"]["torch"] == version("torch")


def test_progress_has_a_row_per_update_and_the_last_rollout_is_as_short_as_asked(run):
    table = rows(run.directory / "progress.csv")
    assert [int(row["steps"]) for row in table] == [192, 384, 576, 600]
    for row in table:
        if row["status"] == "accepted":
            assert float(row["kl"]) <= float(row["max_kl"])
            assert float(row["step_fraction"]) > 0
        else:
            assert float(row["step_fraction"]) == 0
        assert float(row["entropy"]) > 0
        assert float(row["cg_residual"]) < 1


def test_episode_returns_in_progress_are_those_of_the_episodes(run):
    """CartPole pays 1 a step: return and length of an episode are the same number."""
    table = rows(run.directory / "progress.csv")
    finished = [row for row in table if row["episode_return"]]
    assert finished
    assert all(row["episode_return"] == row["episode_length"] for row in finished)


def test_evaluations_are_spaced_evenly_and_end_with_the_final_one(run):
    table = rows(run.directory / "evaluations.csv")
    assert [int(row["steps"]) for row in table] == [192, 384, 600]
    assert [int(row["episodes"]) for row in table] == [5, 5, 6]
    assert float(table[-1]["mean_return"]) == run.evaluation.mean


def test_the_checkpoint_evaluates_to_what_the_run_reported(run):
    again = evaluate_run(run.directory, episodes=6)
    assert again.returns == run.evaluation.returns
    assert again.lengths == run.evaluation.lengths


def test_two_runs_with_one_seed_agree_but_for_their_times(run, tmp_path):
    again = train(
        "trpo", "CartPole-v1", run_dir=tmp_path / "b", seed=7, evaluations=0,
        evaluation_episodes=1, **QUICK,
    )  # fmt: skip
    other = train(
        "trpo", "CartPole-v1", run_dir=tmp_path / "c", seed=8, evaluations=0,
        evaluation_episodes=1, **QUICK,
    )  # fmt: skip

    def untimed(directory):
        return [
            {name: value for name, value in row.items() if "second" not in name}
            for row in rows(directory / "progress.csv")
        ]

    assert untimed(again.directory) == untimed(run.directory)
    assert untimed(other.directory) != untimed(run.directory)


def test_settings_come_from_defaults_then_the_file_then_the_caller(tmp_path):
    tuned = tuned_settings("trpo")["HalfCheetah-v5"]
    assert tuned["max_kl"] != TRPOConfig().max_kl
    run = train(
        "trpo", "HalfCheetah-v5", run_dir=tmp_path / "run", total_steps=32, environments=1,
        rollout_length=32, evaluations=0, evaluation_episodes=1, damping=0.3,
    )  # fmt: skip
    config = json.loads((run.directory / "config.json").read_text())
    assert config["config"]["max_kl"] == tuned["max_kl"]
    assert config["config"]["damping"] == 0.3
    assert config["config"]["shrink"] == TRPOConfig().shrink
    assert config["run"]["environments"] == 1


@pytest.mark.parametrize("algorithm", sorted(registered_plugins()))
def test_every_setting_of_the_file_is_one_and_every_task_of_it_exists(algorithm):
    import gymnasium as gym

    for task in tuned_settings(algorithm):
        assert task in gym.registry
        settings = resolve(algorithm, find_plugin(algorithm), task, {})
        assert settings.tuned == tuned_settings(algorithm)[task]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"algorithm": "tpro"}, "unknown algorithm 'tpro'; did you mean 'trpo'"),
        ({"task": "CartPol-v1"}, "CartPol"),
        ({"max_kll": 1.0}, "unknown setting 'max_kll'.*did you mean 'max_kl'"),
        ({"total_steps": 0}, "total_steps must be at least 1, got 0"),
        ({"evaluations": -1}, "evaluations must be at least 0, got -1"),
        ({"critic": "newton"}, "critic must be one of 'gauss-newton', 'adam', got 'newton'"),
        ({"hidden_sizes": (0,)}, "hidden_sizes must be at least 1"),
        ({"algorithm": "ddpg"}, "Box of floats"),
        ({"algorithm": "ddpg", "task": "test/Unbounded-v0"}, "need an action space with bounds"),
    ],
)
def test_usage_errors_leave_no_directory_behind(arguments, message, tmp_path):
    call = {"algorithm": "trpo", "task": "CartPole-v1", "run_dir": tmp_path / "x", **arguments}
    with pytest.raises(UsageError, match=message):
        train(call.pop("algorithm"), call.pop("task"), **call)
    assert not (tmp_path / "x").exists()


def test_a_run_is_never_overwritten(run):
    before = (run.directory / "progress.csv").read_bytes()
    with pytest.raises(UsageError, match="never overwritten"):
        train("trpo", "CartPole-v1", run_dir=run.directory, **QUICK)
    assert (run.directory / "progress.csv").read_bytes() == before


def test_the_number_of_torch_threads_is_the_callers_again(tmp_path):
    torch.set_num_threads(2)
    train("trpo", "CartPole-v1", run_dir=tmp_path / "x", evaluations=0, evaluation_episodes=1,
          **QUICK)  # fmt: skip
    assert torch.get_num_threads() == 2


def test_progress_is_told_in_plain_lines_where_there_is_no_terminal(tmp_path, capsys):
    train("trpo", "CartPole-v1", run_dir=tmp_path / "x", console=Console(), evaluations=1,
          evaluation_episodes=2, **QUICK)  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("trpo on CartPole-v1, seed 0, 600 steps (settings for this task: ")
    assert "total_steps" not in lines[0]  # overridden
    assert sum("evaluation" in line for line in lines) == 2


def test_ctrl_c_leaves_a_valid_run_directory(tmp_path):
    directory = tmp_path / "run"
    # A shell that runs the tests in the background has them ignore Ctrl-C, and their children too.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        [sys.executable, "-m", "rl_plugins", "train", "trpo", "CartPole-v1",
         "--total-steps", "100000000", "--run-dir", str(directory)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 60
    progress = directory / "progress.csv"
    while time.monotonic() < deadline and not (progress.exists() and len(rows(progress)) > 3):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    try:
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert "interrupted after" in output
    outcome = json.loads((directory / "outcome.json").read_text())
    table = rows(progress)
    assert outcome["outcome"] == "interrupted"
    assert outcome["steps"] == int(table[-1]["steps"])
    assert (directory / "curve.png").is_file()
    assert len(evaluate_run(directory, episodes=2).returns) == 2
    assert not list(directory.glob("*.part"))


def test_a_second_ctrl_c_or_an_error_leaves_what_was_logged_and_says_failed(tmp_path, monkeypatch):
    updates = 0
    original = TRPOAgent.update

    def update(self, batch):
        nonlocal updates
        updates += 1
        if updates == 3:
            raise KeyboardInterrupt
        return original(self, batch)

    monkeypatch.setattr(TRPOAgent, "update", update)
    with pytest.raises(KeyboardInterrupt):
        train("trpo", "CartPole-v1", run_dir=tmp_path / "x", **QUICK)
    outcome = json.loads((tmp_path / "x" / "outcome.json").read_text())
    assert (outcome["outcome"], outcome["steps"]) == ("failed", 384)
    assert len(rows(tmp_path / "x" / "progress.csv")) == 2
    assert (tmp_path / "x" / "curve.png").is_file()


def reporting(name):
    report: Any = dataclasses.make_dataclass("Report", [(name, float)])
    report.summary = "[/no markup]"
    return lambda self, batch: report(np.float64(0.5))


@pytest.mark.parametrize("column", ["steps", "episode_return", "seconds"])
def test_a_report_may_not_redefine_a_column_of_the_loop(column, tmp_path, monkeypatch):
    monkeypatch.setattr(TRPOAgent, "update", reporting(column))
    with pytest.raises(TypeError, match=rf"Report redefines columns.*\['{column}'\]"):
        train("trpo", "CartPole-v1", run_dir=tmp_path / "x", **QUICK)


def test_a_report_of_numpy_numbers_is_a_column_of_numbers_and_its_summary_no_markup(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(TRPOAgent, "update", reporting("loss"))
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=200)
    train("trpo", "CartPole-v1", run_dir=tmp_path / "x", console=console, evaluations=0,
          evaluation_episodes=1, **QUICK)  # fmt: skip
    assert [row["loss"] for row in rows(tmp_path / "x" / "progress.csv")] == ["0.5"] * 4
    assert "[/no markup]" in screen.getvalue()


@pytest.mark.parametrize("what", ["observation", "reward"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_environment_that_returns_nan_fails_in_one_line(what, bad, tmp_path, monkeypatch):
    from gymnasium.envs.classic_control import CartPoleEnv

    original = CartPoleEnv.step
    calls = 0

    def step(self, action):
        nonlocal calls
        calls += 1
        observation, reward, *rest = original(self, action)
        if calls == 302:  # the first is the check of the task
            observation = observation * bad if what == "observation" else observation
            reward = bad if what == "reward" else reward
        return observation, reward, *rest

    monkeypatch.setattr(CartPoleEnv, "step", step)
    with pytest.raises(ExperienceError, match=r"environment \[0\] returned a NaN or an infinity"):
        train("trpo", "CartPole-v1", run_dir=tmp_path / "x", evaluations=0, **QUICK)
    assert json.loads((tmp_path / "x" / "outcome.json").read_text())["outcome"] == "failed"
    assert len(rows(tmp_path / "x" / "progress.csv")) == 1


def test_ctrl_c_during_an_evaluation_ends_it():
    stop = threading.Event()
    stop.set()
    behave = acting(build_counter_policy())
    assert evaluate(behave, "test/Counter-v0", episodes=3, seed=0, stop=stop) is None


def acting(policy):
    return lambda count: Sampling(policy, lambda actions: actions.numpy(), explore=False)


def build_counter_policy():
    return lambda x: torch.distributions.Categorical(logits=torch.zeros(len(x), 2))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"{", "damaged"),
        ("config.json", b"[]", "expected a JSON object"),
        ("config.json", b"{}", "holds no run"),
        ("config.json", b"\xff\xfe", "damaged"),
        ("checkpoint.pt", b"", "damaged"),
        ("checkpoint.pt", b"garbage", "damaged"),
    ],
)
def test_a_damaged_run_is_a_usage_error(name, content, message, run, tmp_path):
    for path in run.directory.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        evaluate_run(tmp_path)


def test_numbers_of_numpy_are_settings_and_others_are_named(tmp_path):
    run = train(
        "trpo", "CartPole-v1", run_dir=tmp_path / "x", seed=np.int64(3), max_kl=np.float32(0.01),
        evaluations=0, evaluation_episodes=1, **QUICK,
    )  # fmt: skip
    assert json.loads((run.directory / "config.json").read_text())["run"]["seed"] == 3
    for bad in ({"environments": 2.5}, {"hidden_sizes": (8.5,)}, {"max_kl": "x"},
                {"normalise_observations": 1}):  # fmt: skip
        (name,) = bad
        with pytest.raises(UsageError, match=name):
            train("trpo", "CartPole-v1", run_dir=tmp_path / "y", **bad)
    assert not (tmp_path / "y").exists()


def test_every_environment_plays_exactly_one_episode():
    """Even first episodes of Counter last 5 steps, and pay 1 a step."""
    evaluation = evaluate(
        acting(build_counter_policy()),
        "test/Counter-v0", episodes=40, seed=0,
    )  # fmt: skip
    assert evaluation is not None
    assert evaluation.returns == (5.0,) * 40
    assert evaluation.lengths == (5,) * 40
    assert (evaluation.mean, evaluation.deviation) == (5.0, 0.0)


def test_evaluation_takes_the_mode_and_is_repeatable():
    class Skewed(torch.nn.Module):
        def forward(self, x):
            return torch.distributions.Categorical(logits=torch.stack([x[:, 2], -x[:, 2]], -1))

    first, again = (evaluate(acting(Skewed()), "CartPole-v1", episodes=5, seed=3) for _ in range(2))
    assert first is not None
    assert first == again
    others: list[Any] = [
        evaluate(acting(Skewed()), "CartPole-v1", episodes=5, seed=seed) for seed in range(4, 9)
    ]
    assert any(other.returns != first.returns for other in others)
    assert math.isclose(np.mean(first.returns), first.mean)


@pytest.mark.parametrize("missing", ["config.json", "checkpoint.pt"])
def test_evaluating_what_is_no_run_is_a_usage_error(missing, run, tmp_path):
    for path in run.directory.iterdir():
        if path.name != missing:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UsageError, match=missing):
        evaluate_run(tmp_path)
    with pytest.raises(UsageError, match="episodes must be at least 1, got 0"):
        evaluate_run(run.directory, episodes=0)
