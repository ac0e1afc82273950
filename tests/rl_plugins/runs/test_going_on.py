"""A run goes on with more steps or on another task, and ends where a rule says so."""

import json
import os
from importlib.metadata import EntryPoint
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv

import rl_plugins
from rl_plugins import Callback, UsageError, evaluate_run, resume, train
from rl_plugins.errors import DamageWarning
from rl_plugins.plugin import find_plugin
from rl_plugins.runs import RunOutcome, callbacks
from rl_plugins.runs.checkpoint import load_checkpoint
from tests.rl_plugins.runs.same_runs import untimed

QUICK: dict[str, Any] = {
    "total_steps": 400, "environments": 2, "rollout_length": 50, "hidden_sizes": (8,),
    "checkpoints": 1, "evaluations": 1, "evaluation_episodes": 2, "seed": 3,
}  # fmt: skip
OFF_POLICY = {**QUICK, "learning_starts": 60, "batch_size": 16, "buffer_size": 300}


class Corner(gym.Env):
    """Pays for action 1; five steps an episode."""

    observation_space = spaces.Box(0, 5, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, pay=1.0):
        self.pay = pay

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.full(1, self.t, np.float32), self.pay * float(action), self.t == 5, False, {}


def table(run, name):
    return untimed(run.directory / name)


def weights(path):
    state = load_checkpoint(path)["agent"]
    return torch.cat([t.flatten().double() for t in leaves(state)])


def leaves(value):
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value
    nested = [leaves(part) for part in parts if isinstance(part, (dict, list, torch.Tensor))]
    return [leaf for part in nested for leaf in part]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "a"
    return train("trpo", "CartPole-v1", run_dir=path, **QUICK)


def copy_of(run, path):
    path.mkdir()
    for file in run.directory.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


def test_a_finished_run_goes_on_with_more_steps(finished, tmp_path):
    path = copy_of(finished, tmp_path / "x")
    longer = resume(path, total_steps=800)
    assert (longer.outcome, longer.steps) == (RunOutcome.FINISHED, 800)
    assert json.loads((path / "config.json").read_text())["run"]["total_steps"] == 800
    rows = table(longer, "progress.csv")
    assert [int(row["steps"]) for row in rows] == list(range(100, 801, 100))
    assert rows[:4] == table(finished, "progress.csv")
    evaluations = table(longer, "evaluations.csv")
    assert evaluations[:2] == table(finished, "evaluations.csv")
    assert evaluations[-1]["steps"] == "800"
    with pytest.raises(UsageError, match="has finished, with 800 steps"):
        resume(path, total_steps=800)
    assert resume(path, total_steps=900).steps == 900


def test_a_longer_run_that_is_killed_is_the_longer_run(finished, tmp_path, monkeypatch):
    whole = resume(copy_of(finished, tmp_path / "x"), total_steps=1000)
    path = copy_of(finished, tmp_path / "y")
    plugin = find_plugin("trpo")
    original, calls = plugin.update, []

    def update_or_die(self, batch):
        calls.append(batch)
        if len(calls) == 3:
            raise RuntimeError("killed")
        return original(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(plugin, "update", update_or_die)
        with pytest.raises(RuntimeError, match="killed"):
            resume(path, total_steps=1000)
    again = resume(path)
    assert again.steps == 1000
    assert torch.equal(weights(path), weights(whole.directory))
    for name in ("progress.csv", "evaluations.csv"):
        assert table(again, name) == table(whole, name)


def test_the_settings_of_a_run_are_those_of_its_checkpoint(finished, tmp_path):
    path = copy_of(finished, tmp_path / "x")
    config = json.loads((path / "config.json").read_text())
    config["run"]["total_steps"], config["config"]["max_kl"] = 800, 0.5
    (path / "config.json").write_text(json.dumps(config))
    for act in (resume, evaluate_run, rl_plugins.load):
        with pytest.raises(UsageError, match=r"has changed since.*--accept-config"):
            act(path)
    assert evaluate_run(path, episodes=2, accept_config=True).returns
    assert resume(path, accept_config=True).steps == 800
    assert resume(path, total_steps=900).steps == 900  # its checkpoints carry the new settings


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [("ppo", QUICK), ("trpo", {**QUICK, "environments": 4}), ("acktr", QUICK)],
)
def test_a_run_starts_from_another_one(algorithm, settings, finished, tmp_path):
    """Also of another algorithm of the family, in another layout."""

    class First(Callback):
        def on_update(self, moment):
            return "seen"

    plugin = find_plugin(algorithm)
    run = train(
        algorithm, "CartPole-v1", run_dir=tmp_path / "x", start_from=finished.directory,
        callbacks=[First()], **settings,
    )  # fmt: skip
    assert (run.outcome, run.reason) == (RunOutcome.STOPPED, "seen")
    source = load_checkpoint(finished.directory)["agent"]["agent"]
    config = plugin.Config(hidden_sizes=(8,))
    agent = plugin.build(
        run.policy.observation_space, run.policy.action_space, config, torch.Generator()
    )
    agent.start_from({"agent": source})  # type: ignore[attr-defined]
    x = torch.ones(1, 4)
    assert torch.equal(agent.policy(x).logits, finished.policy(x).logits)  # type: ignore[attr-defined]


def test_off_policy_agents_take_the_networks_and_not_the_transitions(tmp_path):
    first = train("td3", "Pendulum-v1", run_dir=tmp_path / "x", **OFF_POLICY)
    settings = {**OFF_POLICY, "environments": 4, "total_steps": 40, "evaluation_episodes": 0}
    second = train(
        "td3", "Pendulum-v1", run_dir=tmp_path / "y", start_from=first.directory, **settings
    )  # fmt: skip
    assert second.evaluation is None
    observation = np.array([1.0, 0.0, 0.5], np.float32)
    assert second.policy.act(observation) == first.policy.act(observation)  # still warming up


def test_other_networks_are_no_start(finished, tmp_path):
    for task, settings in (("Pendulum-v1", {}), ("CartPole-v1", {"hidden_sizes": (9,)})):
        with pytest.raises(UsageError, match="the run to start from has other networks"):
            train("trpo", task, run_dir=tmp_path / "x", start_from=finished.directory,
                  **{**QUICK, **settings})  # fmt: skip
        assert not (tmp_path / "x").exists()


def test_a_task_that_was_an_object_is_passed_again(tmp_path):
    run = train("ppo", Corner, run_dir=tmp_path / "x", env_kwargs={"pay": 2.0}, **QUICK)
    config = json.loads((run.directory / "config.json").read_text())
    assert (config["task"], config["run"]["env_kwargs"]) == ("Corner", {"pay": 2.0})
    for act in (
        lambda: resume(run.directory, total_steps=500),
        lambda: evaluate_run(tmp_path / "x"),
    ):
        with pytest.raises(UsageError, match=r"was an object, Corner.*as task="):
            act()
    assert resume(run.directory, total_steps=500, task=Corner).steps == 500
    assert evaluate_run(run.directory, episodes=3, task=Corner).lengths == (5, 5, 5)


def test_a_vector_environment_trains_and_evaluates(tmp_path):
    vector = SyncVectorEnv([Corner] * 5)
    run = train("ppo", vector, run_dir=tmp_path / "x", **{**QUICK, "evaluation_episodes": 7})
    assert run.evaluation is not None
    assert run.evaluation.lengths == (5,) * 7
    config = json.loads((run.directory / "config.json").read_text())["run"]
    assert (config["environments"], config["rollout_length"]) == (5, 20)
    assert not vector.closed


class Recorder(Callback):
    def __init__(self, stop_at=None):
        self.updates, self.evaluations, self.stop_at = [], [], stop_at

    def on_update(self, moment):
        self.updates.append((moment.steps, moment.row["status"]))
        return self.stop_at is not None and moment.steps >= self.stop_at

    def on_evaluation(self, moment):
        self.evaluations.append((moment.steps, moment.evaluation.mean, moment.best))
        assert moment.agent.act(np.zeros(4, np.float32)) in (0, 1)


def test_callbacks_see_the_run_and_may_end_it(tmp_path):
    recorder = Recorder(stop_at=300)
    run = train("trpo", "CartPole-v1", run_dir=tmp_path / "x", callbacks=[recorder], **QUICK)
    assert (run.outcome, run.steps, run.reason) == (RunOutcome.STOPPED, 300, "Recorder said so")
    assert [steps for steps, _ in recorder.updates] == [100, 200, 300]
    rows = table(run, "evaluations.csv")
    assert [(int(r["steps"]), float(r["mean_return"])) for r in rows] == [
        (steps, mean) for steps, mean, _ in recorder.evaluations
    ]
    assert recorder.evaluations[-1][2] == max(mean for _, mean, _ in recorder.evaluations)
    outcome = json.loads((run.directory / "outcome.json").read_text())
    assert (outcome["outcome"], outcome["reason"]) == ("stopped", "Recorder said so")
    assert resume(run.directory, total_steps=400).steps == 400


def test_registered_callbacks_go_by_name(tmp_path, monkeypatch):
    point = EntryPoint("mine", f"{__name__}:Recorder", callbacks.ENTRY_POINTS)
    monkeypatch.setattr(callbacks, "entry_points", lambda group: [point])
    run = train("trpo", "CartPole-v1", run_dir=tmp_path / "x", callbacks=["mine"], **QUICK)
    config = json.loads((run.directory / "config.json").read_text())
    assert config["run"]["callbacks"] == ["mine"]
    with pytest.raises(UsageError, match="unknown callback 'main'; did you mean 'mine'"):
        train("trpo", "CartPole-v1", run_dir=tmp_path / "y", callbacks=["main"], **QUICK)
    with pytest.raises(UsageError, match="has neither"):
        train("trpo", "CartPole-v1", run_dir=tmp_path / "y", callbacks=[print, "mine"], **QUICK)


@pytest.mark.parametrize(
    ("rule", "steps", "reason"),
    [
        ({"stop_return": 0.0}, 200, "the return of 0 is reached"),
        ({"stop_plateau": 2, "evaluations": 3, "evaluation_episodes": 1}, 300, "no new best"),
        ({"stop_seconds": 1e-3}, 100, "0.001 seconds are over"),
    ],
)
def test_rules_end_a_run(rule, steps, reason, tmp_path):
    task = Corner
    run = train("ppo", task, run_dir=tmp_path / "x", env_kwargs={"pay": 0.0}, **{**QUICK, **rule})
    assert (run.outcome, run.steps) == (RunOutcome.STOPPED, steps)
    assert reason in run.reason
    assert run.evaluation is not None


def test_the_best_checkpoint_is_that_of_the_best_evaluation(tmp_path):
    class Falling(Corner):
        """The later, the worse, whatever is done."""

        worth = 10.0

        def step(self, action):
            result = super().step(1)
            return result[0], self.worth, *result[2:]

    class Worse(Callback):
        def on_evaluation(self, moment):
            Falling.worth -= 1.0

    settings = {**QUICK, "evaluations": 3}
    run = train("ppo", Falling, run_dir=tmp_path / "x", callbacks=[Worse()], **settings)
    best = load_checkpoint(run.directory, "best.pt")
    assert (best["steps"], best["best"]) == (100, 50.0)


def test_no_evaluation_where_none_is_asked_for(tmp_path):
    run = train("ppo", Corner, run_dir=tmp_path / "x", **{**QUICK, "evaluation_episodes": 0})
    assert run.outcome is RunOutcome.FINISHED
    assert run.evaluation is None
    assert table(run, "evaluations.csv") == []
    assert run.evaluate(2).lengths == (5, 5)


class Endless(Corner):
    def step(self, action):
        return np.zeros(1, np.float32), 1.0, False, False, {}


def test_an_episode_without_end_is_cut_and_said_to_be(tmp_path):
    settings = {**QUICK, "evaluation_step_limit": 30}
    run = train("ppo", Endless, run_dir=tmp_path / "x", **settings)
    assert run.evaluation is not None
    assert (run.evaluation.lengths, run.evaluation.cut) == ((30, 30), 2)
    assert "2 of them cut after 30 steps" in str(run.evaluation)
    assert [row["cut"] for row in table(run, "evaluations.csv")] == ["2", "2"]


def test_a_task_that_changes_the_working_directory_is_borne(tmp_path, monkeypatch):
    class Moving(Corner):
        def step(self, action):
            os.chdir(tmp_path / "elsewhere")
            return super().step(action)

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    settings = {**QUICK, "stop_plateau": 5}
    run = train("ppo", Moving, run_dir="run", **settings)
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"curve.png", "outcome.json"}
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert str(run.directory) == "run"


@pytest.mark.parametrize("replaced", [False, True])
def test_a_table_that_is_deleted_while_it_is_written_is_told_and_begun_anew(replaced, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("data")

    class Delete(Callback):
        def on_update(self, moment):
            if moment.steps == 200:
                (moment.directory / "progress.csv").unlink()
                if replaced:
                    (moment.directory / "progress.csv").symlink_to(precious)

    with pytest.warns(DamageWarning, match=r"progress\.csv was deleted or replaced"):
        run = train("ppo", Corner, run_dir=tmp_path / "x", callbacks=[Delete()], **QUICK)
    assert run.outcome is RunOutcome.FINISHED
    assert [row["steps"] for row in table(run, "progress.csv")] == ["300", "400"]
    assert precious.read_text() == "data"
