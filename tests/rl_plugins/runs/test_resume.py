"""A run that was killed and resumed is the run that was not."""

import csv

import pytest
import torch

from rl_plugins import UsageError, train
from rl_plugins.plugin import find_plugin
from rl_plugins.runs import Outcome, resume
from rl_plugins.runs.directory import load_checkpoint

ON_POLICY = {
    "total_steps": 800, "environments": 2, "rollout_length": 50, "hidden_sizes": (8,),
    "checkpoints": 2, "evaluations": 1, "evaluation_episodes": 2, "seed": 3,
}  # fmt: skip
OFF_POLICY = {
    **ON_POLICY, "total_steps": 400, "rollout_length": 25, "learning_starts": 60, "batch_size": 16,
    "buffer_size": 300,
}  # fmt: skip
CASES = [
    ("trpo", "CartPole-v1", {**ON_POLICY, "normalise_rewards": True}),
    ("npg", "Pendulum-v1", ON_POLICY),
    ("ppo", "CartPole-v1", {**ON_POLICY, "objective": "penalty", "critic": "adam",
                            "learning_rate_steps": 1000}),
    ("ppo", "Pendulum-v1", {**ON_POLICY, "memory_size": 4}),
    ("a2c", "CartPole-v1", ON_POLICY),
    ("ddpg", "Pendulum-v1", {**OFF_POLICY, "noise": "ornstein-uhlenbeck"}),
    ("td3", "Pendulum-v1", OFF_POLICY),
]  # fmt: skip


def untimed(path):
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows]


def assert_same(first, second):
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        for a, b in zip(first, second, strict=True):
            assert_same(a, b)
    else:
        assert first == second


@pytest.fixture
def killed_at(monkeypatch):
    """Make an algorithm's n-th update raise, once."""

    def arrange(algorithm, update):
        plugin = find_plugin(algorithm)
        original, calls = plugin.update, []

        def update_or_die(self, batch):
            calls.append(batch)
            if len(calls) == update:
                raise RuntimeError("killed")
            return original(self, batch)

        monkeypatch.setattr(plugin, "update", update_or_die)

    return arrange


@pytest.mark.parametrize(("algorithm", "task", "settings"), CASES)
def test_a_resumed_run_writes_what_the_run_would_have_written(
    algorithm, task, settings, tmp_path, killed_at
):
    whole = train(algorithm, task, run_dir=tmp_path / "whole", **settings)
    killed_at(algorithm, 7)  # between the second checkpoint, after 5 of 8 updates, and the end
    with pytest.raises(RuntimeError, match="killed"):
        train(algorithm, task, run_dir=tmp_path / "part", **settings)
    assert load_checkpoint(tmp_path / "part")["updates"] == 5
    resumed = resume(tmp_path / "part")

    assert resumed.outcome is Outcome.FINISHED
    assert resumed.steps == whole.steps
    assert resumed.evaluation == whole.evaluation
    for name in ("progress.csv", "evaluations.csv"):
        assert untimed(tmp_path / "part" / name) == untimed(tmp_path / "whole" / name)
    first, second = (load_checkpoint(tmp_path / name) for name in ("whole", "part"))
    del first["seconds"], second["seconds"]
    assert_same(first, second)


def test_a_finished_run_and_one_without_a_checkpoint_are_not_resumed(tmp_path, killed_at):
    train("trpo", "CartPole-v1", run_dir=tmp_path / "done", **ON_POLICY)
    with pytest.raises(UsageError, match=r"has finished.*--total-steps"):
        resume(tmp_path / "done")
    killed_at("trpo", 1)
    with pytest.raises(RuntimeError, match="killed"):
        train("trpo", "CartPole-v1", run_dir=tmp_path / "young", **ON_POLICY)
    with pytest.raises(UsageError, match=r"no checkpoint\.pt yet"):
        resume(tmp_path / "young")


def test_a_row_that_a_crash_cut_off_is_dropped(tmp_path, killed_at):
    whole = train("trpo", "CartPole-v1", run_dir=tmp_path / "whole", **ON_POLICY)
    killed_at("trpo", 7)
    with pytest.raises(RuntimeError, match="killed"):
        train("trpo", "CartPole-v1", run_dir=tmp_path / "part", **ON_POLICY)
    with (tmp_path / "part" / "progress.csv").open("a") as file:
        file.write("7,700,acc")
    resume(tmp_path / "part")
    assert untimed(tmp_path / "part" / "progress.csv") == untimed(whole.directory / "progress.csv")
