"""TensorBoard shows a run's numbers in groups, losses of policy and critic among them."""

from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rl_plugins import train

QUICK: dict[str, Any] = {
    "total_steps": 200, "environments": 2, "rollout_length": 50, "hidden_sizes": (8,),
    "evaluations": 0, "evaluation_episodes": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("algorithm", "task"), [("trpo", "CartPole-v1"), ("ppo", "CartPole-v1"), ("td3", "Pendulum-v1")]
)
def test_tags_are_grouped(algorithm, task, tmp_path):
    extra: dict[str, Any] = {"learning_starts": 50, "batch_size": 16} if algorithm == "td3" else {}
    run = train(algorithm, task, run_dir=tmp_path / "x", **QUICK, **extra)
    events = EventAccumulator(str(run.directory))
    events.Reload()
    tags = events.Tags()["scalars"]
    groups = {tag.split("/")[0] for tag in tags}
    assert groups == {"policy", "critic", "episodes", "evaluation", "time"}
    assert "critic/critic_loss" in tags
    assert "evaluation/mean_return" in tags
    if algorithm != "td3":
        assert {"policy/kl", "policy/policy_loss", "critic/explained_variance"} <= set(tags)
        steps = [event.step for event in events.Scalars("policy/policy_loss")]
        assert steps == [100, 200]
