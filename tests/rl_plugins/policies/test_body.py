"""A network of one's own stands in front of the layers of policies and critics."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rl_plugins
from rl_plugins import UsageError, train
from rl_plugins.policies import feature_network

QUICK: dict[str, Any] = {
    "total_steps": 200, "environments": 2, "rollout_length": 50, "hidden_sizes": (8,),
    "evaluations": 0, "evaluation_episodes": 2,
}  # fmt: skip


class Squares(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, 5)

    def forward(self, x):
        return self.linear(x).square()


def squares(width, images):
    return Squares(width)


class Eye(nn.Module):
    def __init__(self, images):
        super().__init__()
        ((self.name, shape),) = images.items()
        self.cnn = nn.Sequential(nn.Conv2d(shape[0], 2, 3, 2), nn.ReLU(), nn.Flatten())

    def forward(self, features):
        return torch.cat([self.cnn(features[self.name].float() / 255), features["vector"]], 1)


def eye(width, images):
    return Eye(images)


def build(make_body, images=None, seed=0):
    return feature_network(
        3, images or {}, (4,), 2, output_gain=1.0, activation=nn.Tanh, make_body=make_body,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip


def test_it_reads_what_the_features_give():
    network = build(squares)
    x = torch.ones(7, 3)
    assert network(x).shape == (7, 2)
    assert torch.equal(network(x), network.network(network.body(x)))
    assert isinstance(network[-1], nn.Linear)
    seen = build(eye, {"image0": (3, 9, 9)})
    picture = torch.zeros(2, 3, 9, 9, dtype=torch.uint8)
    assert seen({"vector": torch.ones(2, 3), "image0": picture}).shape == (2, 2)


def test_its_weights_come_from_the_generator_alone():
    before = torch.get_rng_state()
    first, again, other = build(squares), build(squares), build(squares, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.body.linear.weight, again.body.linear.weight)
    assert not torch.equal(first.body.linear.weight, other.body.linear.weight)


@pytest.mark.parametrize(
    ("make_body", "message"),
    [
        (lambda width: nn.Identity(), r"function of \(width, images\)"),
        (lambda width, images: torch.ones(2), "must be a torch.nn.Module, got Tensor"),
        (lambda width, images: nn.Linear(2, 4), "fails on two observations of zeros"),
        (lambda width, images: nn.Flatten(0), r"to \(2, d\), got \(6,\)"),
    ],
)
def test_mistakes_are_told(make_body, message):
    with pytest.raises(UsageError, match=message):
        build(make_body)


@pytest.mark.parametrize(
    ("algorithm", "task"), [("trpo", "CartPole-v1"), ("ppo", "Pendulum-v1"), ("td3", "Pendulum-v1")]
)
def test_a_run_trains_it_and_names_it(algorithm, task, tmp_path):
    extra: dict[str, Any] = {"learning_starts": 50, "batch_size": 16} if algorithm == "td3" else {}
    run = train(algorithm, task, run_dir=tmp_path / "x", body=squares, **QUICK, **extra)
    assert any("body.linear.weight" in name for name, _ in run.policy.policy.named_parameters())
    with pytest.raises(UsageError, match=f"--import {__name__}"):
        rl_plugins.load(run.directory)
    agent = rl_plugins.load(run.directory, imports=[__name__])
    observation = np.full(agent.observation_space.shape or (), 0.1, np.float32)
    assert agent.act(observation) == run.policy.act(observation)
    if algorithm == "trpo":
        assert agent.export(tmp_path / "policy.onnx") == ["observation"]


def test_what_cannot_be_found_again_is_refused(tmp_path):
    with pytest.raises(UsageError, match="define it at the top of a module"):
        train("ppo", "CartPole-v1", run_dir=tmp_path / "x", body=lambda w, i: Squares(w), **QUICK)
    with pytest.raises(UsageError, match="exclude each other"):
        train("ppo", "CartPole-v1", run_dir=tmp_path / "x", body=squares, memory_size=4, **QUICK)
