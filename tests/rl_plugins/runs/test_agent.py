"""A trained policy acts in one's own program as it did in training, without its task."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

import rl_plugins
from rl_plugins import UsageError, train
from rl_plugins.data.task import Task

QUICK: dict[str, Any] = {
    "total_steps": 200, "environments": 2, "rollout_length": 50, "hidden_sizes": (8,),
    "evaluations": 0, "evaluation_episodes": 2,
}  # fmt: skip


class Hidden(gym.Env):
    """Shows a sign once; pays at the end for naming it. Its mask allows the last two actions."""

    observation_space = spaces.Dict(
        sign=spaces.Box(-1, 1, (1,), np.float32), place=spaces.Discrete(4)
    )
    action_space = spaces.Discrete(3, start=1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.sign, self.place = float(self.np_random.choice([-1, 1])), 0
        return self._seen(), {"action_mask": np.array([0, 1, 1], np.int8)}

    def step(self, action):
        assert action in (2, 3), action
        self.place += 1
        ended = self.place == 3
        reward = float(ended and (action == 3) == (self.sign > 0))
        return self._seen(), reward, ended, False, {"action_mask": np.array([0, 1, 1], np.int8)}

    def _seen(self):
        shown = self.sign if self.place == 0 else 0.0
        return {"sign": np.array([shown], np.float32), "place": self.place}


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "a"
    return train("ppo", Hidden, run_dir=path, memory_size=4, **QUICK)


def play(agent, task, seed):
    """Return of an episode, by one's own loop."""
    agent.reset()
    observation, info = task.reset(seed=seed)
    total, ended = 0.0, False
    while not ended:
        action = agent.act(observation, action_mask=info.get("action_mask"))
        observation, reward, terminated, truncated, info = task.step(action)
        total, ended = total + reward, terminated or truncated
    return total


def test_one_s_own_loop_plays_what_the_evaluation_played(masked):
    agent = rl_plugins.load(masked.directory)
    first = 1_000_000
    returns = tuple(play(agent, Hidden(), first + number) for number in range(2))
    assert returns == masked.evaluation.returns
    assert masked.evaluate(2).returns == returns


def test_the_run_s_policy_and_the_loaded_one_are_the_same(masked):
    task, agent = Hidden(), rl_plugins.load(masked.directory)
    observation, info = task.reset(seed=3)
    for _ in range(3):
        mask = info["action_mask"]
        chosen = agent.act(observation, action_mask=mask)
        assert chosen == masked.policy.act(observation, action_mask=mask)
        assert task.action_space.contains(chosen)
        observation, _, _, _, info = task.step(chosen)


def test_without_a_mask_everything_is_allowed(masked):
    observation, _ = Hidden().reset(seed=0)
    assert masked.policy.act(observation) in (1, 2, 3)


@pytest.mark.parametrize(
    ("algorithm", "task"), [("trpo", "CartPole-v1"), ("td3", "Pendulum-v1"), ("a2c", "Pendulum-v1")]
)
def test_one_observation_and_several(algorithm, task, tmp_path):
    extra: dict[str, Any] = {"learning_starts": 50, "batch_size": 16} if algorithm == "td3" else {}
    run = train(algorithm, task, run_dir=tmp_path / "x", **QUICK, **extra)
    agent = rl_plugins.load(run.directory)
    agent.observation_space.seed(0)
    several = np.stack([agent.observation_space.sample() for _ in range(5)])
    together = agent.act(several)
    for observation, action in zip(several, together, strict=True):
        alone = agent.act(observation)
        assert agent.action_space.contains(alone)
        np.testing.assert_allclose(alone, action, rtol=1e-5, atol=1e-6)
    drawn = [agent.act(several[0], explore=True) for _ in range(20)]
    assert len({np.asarray(action).tobytes() for action in drawn}) > 1
    assert isinstance(agent.policy, torch.nn.Module)
    agent(torch.from_numpy(several))  # the network itself


def test_an_observation_of_another_shape_is_refused(tmp_path):
    run = train("trpo", "CartPole-v1", run_dir=tmp_path / "x", **QUICK)
    for wrong in (np.zeros(3), np.zeros((2, 5)), {"a": 1}, None, "text"):
        with pytest.raises(UsageError, match="expected an observation of Box"):
            run.policy.act(wrong)


def test_the_task_need_not_be_there(masked, monkeypatch):
    def gone(self, **options):
        raise AssertionError("the task was made")

    monkeypatch.setattr(Task, "make", gone)
    agent = rl_plugins.load(masked.directory)
    observation = {"sign": np.array([1.0], np.float32), "place": 0}
    assert agent.act(observation, action_mask=[0, 1, 1]) in (2, 3)


def test_which_checkpoint(tmp_path):
    settings = {**QUICK, "evaluations": 1}
    run = train("trpo", "CartPole-v1", run_dir=tmp_path / "x", **settings)
    best = rl_plugins.load(run.directory, checkpoint="best")
    assert best.act(np.zeros(4, np.float32)) in (0, 1)
    with pytest.raises(UsageError, match=r"holds no interruption\.pt yet"):
        rl_plugins.load(run.directory, checkpoint="interruption")
    with pytest.raises(UsageError, match="must be one of last, best, interruption"):
        rl_plugins.load(run.directory, checkpoint="newest")  # type: ignore[arg-type]
