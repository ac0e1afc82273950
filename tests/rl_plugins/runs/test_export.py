"""The exported file acts as the agent does, with statistics and bounds inside."""

from typing import Any

import gymnasium as gym
import numpy as np
import optree
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from onnx.reference import ReferenceEvaluator

from rl_plugins import UsageError, train
from rl_plugins.data.autoreset import tensors
from rl_plugins.runs import export_run
from rl_plugins.runs.loading import trained

QUICK: dict[str, Any] = {
    "total_steps": 300, "environments": 2, "rollout_length": 50, "hidden_sizes": (8,),
    "evaluations": 0, "evaluation_episodes": 1,
}  # fmt: skip


class Everything(gym.Env):
    """Observations and actions of most kinds; rewards of nothing."""

    observation_space = spaces.Dict(
        number=spaces.Discrete(3, start=1),
        vector=spaces.Box(-5, 5, (2,), np.float64),
        picture=spaces.Box(0, 255, (9, 9, 1), np.uint8),
    )
    action_space = spaces.Dict(
        lever=spaces.Discrete(3, start=2),
        push=spaces.Box(2, 10, (2,), np.float32),
        switches=spaces.MultiBinary(2),
    )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(0 if seed is None else seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, True, {}


@pytest.fixture(scope="module", autouse=True)
def _tasks():
    gym.register("test/Everything-v0", Everything)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("algorithm", "task", "settings"),
    [
        ("ppo", "test/Everything-v0", {"action_bounds": "tanh"}),
        ("td3", "Pendulum-v1", {"learning_starts": 50, "batch_size": 16}),
    ],
)
def test_the_file_takes_the_actions_that_the_agent_takes(algorithm, task, settings, tmp_path):
    train(algorithm, task, run_dir=tmp_path / "run", **QUICK, **settings)
    (tmp_path / "out").mkdir()
    inputs = export_run(tmp_path / "run", tmp_path / "out" / "policy.onnx")
    (tmp_path / "out" / "policy.onnx").rename(tmp_path / "policy.onnx")  # it is one file
    assert list((tmp_path / "out").iterdir()) == []
    plugin, _, space, _ = trained(tmp_path / "run")
    batch = batch_space(space, 7)
    batch.seed(3)
    observations = tensors(batch.sample())
    behaviour = plugin.behaviour(7, explore=False)
    with torch.inference_mode():
        actions = behaviour.act(observations, torch.Generator())
        expected = optree.tree_leaves(behaviour.to_environment(actions))
    arrays = [leaf.numpy() for leaf in optree.tree_leaves(observations)]
    found = ReferenceEvaluator(str(tmp_path / "policy.onnx")).run(
        None, dict(zip(inputs, arrays, strict=True))
    )
    for ours, theirs in zip(expected, found, strict=True):
        assert ours.shape == theirs.shape
        assert np.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_exported_is_said(tmp_path):
    train("a2c", "CartPole-v1", run_dir=tmp_path / "run", memory_size=4, **QUICK)
    with pytest.raises(UsageError, match="memory cannot be exported"):
        export_run(tmp_path / "run", tmp_path / "policy.onnx")
    with pytest.raises(UsageError, match=r"no config\.json"):
        export_run(tmp_path / "nothing", tmp_path / "policy.onnx")


def test_a_file_that_acts_otherwise_is_not_written(tmp_path, monkeypatch):
    train("ppo", "CartPole-v1", run_dir=tmp_path / "run", **QUICK)
    (tmp_path / "policy.onnx").write_bytes(b"the one before")
    with monkeypatch.context() as patch:
        patch.setattr(ReferenceEvaluator, "run", lambda self, *_: [np.full(16, 7)])
        with pytest.raises(UsageError, match="nothing was written"):
            export_run(tmp_path / "run", tmp_path / "policy.onnx")
    assert (tmp_path / "policy.onnx").read_bytes() == b"the one before"
    for out in ("", tmp_path, tmp_path / "nowhere" / "policy.onnx"):
        with pytest.raises(UsageError, match="cannot write"):
            export_run(tmp_path / "run", out)


def test_the_task_is_not_needed(tmp_path):
    name = "test/Gone-v0"
    gym.register(name, Everything)  # type: ignore[arg-type]
    train("ppo", name, run_dir=tmp_path / "run", **QUICK)
    del gym.registry[name]
    assert len(export_run(tmp_path / "run", tmp_path / "policy.onnx")) == 3
