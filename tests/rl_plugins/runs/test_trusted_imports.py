"""Modules that a run's files name are imported only for a caller who names them too."""

import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rl_plugins import UsageError, evaluate_run, load, resume, train

QUICK: dict[str, Any] = {
    "total_steps": 16,
    "environments": 1,
    "rollout_length": 16,
    "hidden_sizes": (4,),
    "evaluations": 0,
    "evaluation_episodes": 0,
}
MODULE = """
import gymnasium as gym
class Halved(gym.wrappers.TransformReward):
    def __init__(self, env):
        super().__init__(env, lambda reward: reward / 2)
gym.register("OfAStranger-v0", "gymnasium.envs.classic_control:CartPoleEnv", max_episode_steps=9)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The run of a package's task and wrapper, where the package has not been imported since."""
    package = tmp_path / "stranger"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "tasks.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    name = "stranger.tasks:OfAStranger-v0"
    found = train(
        "a2c", name, wrappers=["stranger.tasks:Halved"], run_dir=tmp_path / "run", **QUICK
    )
    forget()
    yield found.directory
    forget()


def forget():
    gym.registry.pop("OfAStranger-v0", None)
    for module in ("stranger.tasks", "stranger"):
        sys.modules.pop(module, None)


@pytest.mark.parametrize("act", [evaluate_run, lambda path: resume(path, total_steps=32)])
def test_a_task_that_is_made_is_imported_only_if_the_caller_says_so(run, act):
    with pytest.raises(UsageError, match=r"'stranger\.tasks', imported only if you say so: --imp"):
        act(run)
    assert "stranger" not in sys.modules


def test_a_policy_acts_without_the_modules_of_its_task(run):
    action = load(run).act(np.zeros(4, dtype=np.float32))
    assert action in (0, 1)
    assert "stranger" not in sys.modules


def test_a_trusted_package_is_trusted_with_its_modules(run):
    assert evaluate_run(run, episodes=1, imports=["stranger"]).lengths[0] <= 9


def test_wrappers_of_gymnasium_need_no_word(tmp_path):
    run = train(
        "a2c",
        "CartPole-v1",
        wrappers=["gymnasium.wrappers:FlattenObservation"],
        run_dir=tmp_path / "run",
        **QUICK,
    )
    assert len(evaluate_run(run.directory, episodes=2, step_limit=20).returns) == 2
