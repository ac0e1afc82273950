import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.distributions import Categorical, Independent, Normal, Poisson

from rl_plugins import UsageError
from rl_plugins.agents.actor_critic import ActorCritic
from rl_plugins.agents.networks import OnPolicyConfig
from rl_plugins.policies import mlp, sample
from rl_plugins.policies.spaces import action_map

BOX = spaces.Box(-1, 1, (4,), np.float32)


def build(observation_space, action_space, generator):
    config = OnPolicyConfig(hidden_sizes=(8,), normalise_observations=False)
    return ActorCritic(observation_space, action_space, config, generator).policy


def test_a_gaussian_policy_starts_near_the_middle_with_the_given_deviation(generator):
    policy = build(BOX, spaces.Box(-2, 2, (3,), np.float32), generator)
    distribution = policy(torch.randn(6, 4, generator=generator))
    assert distribution.batch_shape == (6,)
    assert distribution.event_shape == (3,)
    assert distribution.mean.abs().max() < 0.1
    assert torch.allclose(distribution.stddev, torch.tensor(math.exp(-0.5)))


def test_a_categorical_policy_starts_near_uniform(generator):
    policy = build(BOX, spaces.Discrete(5), generator)
    distribution = policy(torch.randn(6, 4, generator=generator))
    assert torch.allclose(distribution.probs, torch.tensor(0.2), atol=0.02)


def test_observations_of_any_box_shape_are_flattened(generator):
    policy = build(spaces.Box(-1, 1, (2, 3, 2), np.float32), spaces.Discrete(2), generator)
    assert policy(torch.zeros(7, 2, 3, 2)).batch_shape == (7,)


def test_bounded_actions_are_stretched_to_their_bounds_and_clipped():
    space = spaces.Box(np.array([2.0, -1.0], np.float32), np.array([10.0, 1.0], np.float32))
    act = action_map(space)
    actions = act(torch.tensor([[0.0, 0.0], [1.0, 1.0], [-7.0, -0.5], [0.5, 3.0]]))
    assert actions.tolist() == [[6, 0], [10, 1], [2, -0.5], [8, 1]]
    assert actions.dtype == np.float32
    assert all(space.contains(action) for action in actions)


def test_unbounded_actions_pass_and_half_bounded_ones_are_clipped():
    space = spaces.Box(np.array([-np.inf, 0.0]), np.array([np.inf, np.inf]), dtype=np.float64)
    act = action_map(space)
    assert act(torch.tensor([[5.0, 5.0], [-5.0, -5.0]])).tolist() == [[5, 5], [-5, 0]]


def test_discrete_actions_start_where_the_space_does():
    assert action_map(spaces.Discrete(3, start=5))(torch.tensor([0, 2])).tolist() == [5, 7]


@pytest.mark.parametrize(
    ("observations", "actions", "message"),
    [
        (spaces.Text(3), spaces.Discrete(2), "observations of type Text"),
        (spaces.Dict(a=spaces.Dict(b=spaces.Text(3))), spaces.Discrete(2), r"Text at a\.b"),
        (BOX, spaces.Text(3), "only Discrete, MultiDiscrete"),
        (BOX, spaces.Box(0, 9, (2,), np.int64), "Box of floats"),
    ],
)
def test_unsupported_spaces_are_usage_errors(observations, actions, message, generator):
    with pytest.raises(UsageError, match=message):
        build(observations, actions, generator)


def test_hidden_weights_are_orthogonal_with_gain_sqrt_2_and_the_last_has_its_own(generator):
    network = mlp(5, (4,), 3, output_gain=0.01, generator=generator)
    weights: list[Any] = [network[0].weight, network[2].weight]
    hidden, last = weights
    assert torch.allclose(hidden @ hidden.T, 2 * torch.eye(4), atol=1e-5)
    assert torch.allclose(last @ last.T, 1e-4 * torch.eye(3), atol=1e-8)


@pytest.mark.parametrize(
    "distribution",
    [
        Categorical(logits=torch.tensor([0.0, 1.0, -1.0]).expand(40_000, 3)),
        Independent(Normal(torch.full((40_000, 2), 3.0), torch.tensor([0.5, 2.0])), 1),
    ],
    ids=["categorical", "normal"],
)
def test_draws_have_the_distributions_moments(distribution, generator):
    draws = sample(distribution, generator).double()
    assert draws.shape == distribution.batch_shape + distribution.event_shape
    if isinstance(distribution, Categorical):
        frequencies = torch.bincount(draws.long(), minlength=3) / len(draws)
        assert torch.allclose(frequencies, distribution.probs[0], atol=0.015)
    else:
        assert torch.allclose(draws.mean(0), torch.tensor([3.0, 3.0]).double(), atol=0.05)
        assert torch.allclose(draws.std(0), torch.tensor([0.5, 2.0]).double(), atol=0.05)


def test_draws_are_the_generators_alone():
    distribution = Normal(torch.zeros(4), torch.ones(4))
    first = sample(distribution, torch.Generator().manual_seed(3))
    again = sample(distribution, torch.Generator().manual_seed(3))
    assert torch.equal(first, again)


def test_a_family_without_a_sampler_is_named(generator):
    with pytest.raises(TypeError, match=r"Poisson.*register"):
        sample(Poisson(torch.ones(3)), generator)
