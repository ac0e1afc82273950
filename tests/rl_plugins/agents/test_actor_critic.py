"""From a rollout to what an update learns from."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rl_plugins.agents.actor_critic import ActorCritic
from rl_plugins.agents.networks import OnPolicyConfig
from rl_plugins.data.collector import RolloutCollector
from rl_plugins.data.environments import make_environments
from rl_plugins.data.rollout import standardise

BOX = spaces.Box(-np.inf, np.inf, (4,), np.float32)


def actor_critic(generator, **settings):
    config = OnPolicyConfig(hidden_sizes=(8,), **settings)
    return ActorCritic(BOX, spaces.Discrete(2), config, generator)


def collector(agent, generator):
    return RolloutCollector(
        make_environments("CartPole-v1", 3), agent.behaviour(3, explore=True),
        seed=0, generator=generator,
    )  # fmt: skip


def test_the_normaliser_sees_every_observation_once_and_moves_only_between_updates(
    generator,
):
    agent = actor_critic(generator)
    pieces = collector(agent, generator)
    seen = []
    for _ in range(4):
        rollout = pieces.collect(20)
        batch = agent.learning_batch(rollout)
        seen.append(batch.observations)
        during = agent.features.normaliser.shift.clone()
        agent.critic.fit(batch.observations, batch.targets)
        assert torch.equal(agent.features.normaliser.shift, during)
        agent.finish_update(batch)
        everything = torch.cat(seen).double()
        assert float(agent.features.normaliser.moments.count) == len(everything)
        assert torch.allclose(agent.features.normaliser.moments.mean, everything.mean(dim=0))


def test_policy_and_critic_see_through_one_normaliser_and_its_absence_is_the_identity(generator):
    agent = actor_critic(generator)
    assert agent.policy.features is agent.critic.features is agent.features
    assert agent.features.normaliser is not None
    plain = actor_critic(generator, normalise_observations=False)
    assert plain.features.normaliser is None
    x = torch.randn(5, 4, generator=generator)
    assert torch.equal(plain.policy.features(x), x)


def test_targets_are_lambda_returns_and_advantages_are_standardised(generator):
    agent = actor_critic(generator, discount=0.9, decay=1.0)
    rollout = collector(agent, generator).collect(30)
    batch = agent.learning_batch(rollout)
    assert batch.observations.shape == (90, 4)
    assert abs(float(batch.advantages.mean())) < 1e-6
    assert abs(float(batch.advantages.std(correction=0)) - 1) < 1e-5
    # With λ = 1 a target is the discounted reward to the end plus the bootstrap of a cut.
    targets = batch.targets.view(30, 3)
    for n in range(3):
        ends = rollout.terminated[:, n].nonzero().flatten()
        for t in ends:
            assert abs(float(targets[t, n]) - 1.0) < 1e-4
            if t > 0 and not rollout.terminated[t - 1, n]:
                assert abs(float(targets[t - 1, n]) - 1.9) < 1e-4


def test_the_state_of_an_agent_is_all_of_it(generator):
    first, second = actor_critic(generator), actor_critic(generator)
    batch = first.learning_batch(collector(first, generator).collect(20))
    first.finish_update(batch)
    second.load_state_dict(first.state_dict())
    x = torch.randn(5, 4, generator=generator)
    assert torch.equal(first.policy(x).logits, second.policy(x).logits)
    assert torch.equal(first.critic(x), second.critic(x))


@pytest.mark.parametrize("value", [0.0, 0.1, -0.3, 3.0, 1e6, 1e-20])
def test_equal_advantages_are_only_centred(value):
    """Their deviation is the rounding of their mean; divided by it they would all be one."""
    assert standardise(torch.full((100,), value)).abs().max() <= 1e-6 * abs(value)


def test_an_update_of_the_statistics_leaves_policy_and_critic_the_functions_they_are(
    generator,
):
    class Idle:
        def fit(self, network, features, targets):
            pass

    agent = actor_critic(generator)
    pieces = collector(agent, generator)
    for _ in range(3):
        rollout = pieces.collect(40)
        batch = agent.learning_batch(rollout)
        before = agent.policy(batch.observations).logits.detach()
        agent.critic.regression = Idle()
        agent.critic._rescale = lambda _: None
        values = agent.critic(batch.observations).detach()
        moved = agent.features.normaliser.shift.clone()
        agent.finish_update(batch)
        if not batch.already_seen:
            assert not torch.equal(agent.features.normaliser.shift, moved)
        assert torch.allclose(agent.policy(batch.observations).logits, before, atol=1e-6)
        assert torch.allclose(agent.critic(batch.observations), values, atol=1e-5)
