"""What TD3 does differently from DDPG: twin critics, delay, smoothing. The rest is in test_ddpg."""

import copy
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from natgrad.flat import flatten
from rl_plugins import TD3, TD3Config, UsageError
from rl_plugins.agents import TD3Agent
from rl_plugins.data import Transitions
from rl_plugins.policies import mlp


class Actor(nn.Module):
    def __init__(self, generator):
        super().__init__()
        self.network = mlp(3, (8,), 2, output_gain=2.0, generator=generator).double()

    def forward(self, x):
        return torch.tanh(self.network(x))


class Value(nn.Module):
    def __init__(self, generator):
        super().__init__()
        self.network = mlp(5, (8,), 1, output_gain=1.0, generator=generator).double()

    def forward(self, x, actions):
        return self.network(torch.cat([x, actions], dim=1)).squeeze(-1)


def batch(generator, size=64):
    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    terminated = torch.rand(size, generator=generator) < 0.3
    return normal(size, 3), normal(size, 2).tanh(), normal(size), normal(size, 3), terminated


def make(generator, **settings):
    own = torch.Generator().manual_seed(7)
    return TD3(Actor(generator), Value(generator), Value(generator), generator=own, **settings)


class Seen(nn.Module):
    """Q′ = 0, and the actions that it was asked about."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x, actions):
        self.actions = actions
        return self.weight * actions.sum(dim=1)


def smoothed_actions(generator, **settings):
    """(actions of the target policy, the same as the target critics saw them)."""
    critics = Seen(), Seen()
    td3 = TD3(Actor(generator), *critics, generator=generator, **settings)
    transitions = Transitions(*batch(generator, 4000))
    td3.targets(transitions)
    first, second = (critic.actions for critic in td3.target_critics)
    assert first is second
    with torch.no_grad():
        return td3.target_policy(transitions.next_observations), first


def test_the_target_is_the_lower_of_the_twins_transition_by_transition(generator):
    td3 = make(generator, smoothing=0.0, discount=0.9)
    x, a, r, following, terminated = batch(generator)
    y = td3.targets(Transitions(x, a, r, following, terminated))
    with torch.no_grad():
        actions = td3.target_policy(following)
        values = torch.stack([Q(following, actions) for Q in td3.target_critics])
    lower = values.argmin(dim=0)
    assert 0 < int(lower.sum()) < len(r)
    for k in range(len(r)):
        bootstrap = 0.0 if terminated[k] else 0.9 * float(values[lower[k], k])
        assert math.isclose(float(y[k]), float(r[k]) + bootstrap, rel_tol=1e-12, abs_tol=1e-14)
    assert not y.requires_grad


def test_smoothing_is_clipped_normal_noise_of_every_action_of_its_own(generator):
    actions, seen = smoothed_actions(
        generator, smoothing=0.2, smoothing_clip=0.3, action_limit=math.inf
    )
    noise = seen - actions
    assert float(noise.abs().amax()) == pytest.approx(0.3, rel=1e-12)
    # Mass and moments of a normal of deviation 0.2, clipped at 1.5 of them.
    normal = torch.distributions.Normal(0.0, 1.0)
    outside = 2 * float(normal.cdf(torch.tensor(-1.5)))
    density = math.exp(-1.125) / math.sqrt(2 * math.pi)
    variance = 0.04 * (1 - outside - 3 * density + 2.25 * outside)
    count = noise.numel()
    found = float((noise.abs() > 0.3 - 1e-9).double().mean())
    assert abs(found - outside) < 4 * math.sqrt(outside / count)
    assert abs(float(noise.mean())) < 4 * math.sqrt(variance / count)
    assert abs(float(noise.square().mean()) / variance - 1) < 4 * math.sqrt(2 / count)
    assert abs(float((noise[:, 0] * noise[:, 1]).mean())) < 4 * variance / math.sqrt(len(noise))


@pytest.mark.parametrize("limit", [1.0, 0.5])
def test_smoothed_actions_stay_within_the_bounds(limit, generator):
    actions, seen = smoothed_actions(generator, smoothing=1.0, action_limit=limit)
    assert float(seen.abs().amax()) == limit
    # Clipped to the bounds, not drawn to them: wherever there is room the noise is as it was.
    inside = seen.abs() < limit
    assert float((seen - actions)[inside].abs().amax()) <= 0.5 + 1e-12


def test_without_smoothing_the_target_asks_about_the_action_itself(generator):
    actions, seen = smoothed_actions(generator, smoothing=0.0)
    assert torch.equal(actions, seen)


def test_smoothing_comes_from_the_generator_alone():
    """The global one is watched by a fixture."""
    seen = [
        smoothed_actions(torch.Generator().manual_seed(seed), smoothing=0.2)[1]
        for seed in (1, 1, 2)
    ]
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


@pytest.mark.parametrize("delay", [1, 2, 3])
@pytest.mark.parametrize("actor", ["gradient", "natural"])
def test_the_actor_and_the_targets_move_every_dth_step_only(delay, actor, generator):
    td3 = make(generator, policy_delay=delay, actor=actor)

    def slow():
        return flatten([
            *td3.policy.parameters(), *td3.target_policy.parameters(),
            *td3.target_critics.parameters(),
        ])  # fmt: skip

    for step in range(1, 7):
        before, critics = slow(), flatten(td3.critics.parameters())
        report = td3.step(*batch(generator))
        moves = step % delay == 0
        assert torch.equal(slow(), before) != moves
        assert not torch.equal(flatten(td3.critics.parameters()), critics)
        assert math.isnan(report.action_value) != moves
        assert math.isnan(report.action_change) == (not moves or actor == "gradient")


def test_steps_are_those_of_the_pseudocode(generator):
    td3 = make(
        generator, discount=0.95, target_rate=0.1, policy_delay=2, smoothing=0.3,
        smoothing_clip=0.4, actor_learning_rate=3e-2, critic_learning_rate=1e-1, optimizer="SGD",
    )  # fmt: skip
    mu, first, second = (copy.deepcopy(m) for m in (td3.policy, *td3.critics))
    old = [copy.deepcopy(m) for m in (mu, first, second)]
    # Not Adam, whose 1 / (√v + ε) turns the rounding of an entry near 0 into steps.
    actor = torch.optim.SGD(mu.parameters(), lr=3e-2)
    critics = [torch.optim.SGD(Q.parameters(), lr=1e-1) for Q in (first, second)]
    noise_from = torch.Generator().manual_seed(7)
    for step in range(6):
        x, a, r, following, terminated = batch(generator)
        with torch.no_grad():
            chosen = old[0](following)
            noise = 0.3 * torch.randn(chosen.shape, generator=noise_from, dtype=torch.float64)
            chosen = (chosen + noise.clamp(-0.4, 0.4)).clamp(-1, 1)
            y = torch.minimum(old[1](following, chosen), old[2](following, chosen))
            y = r + 0.95 * y * ~terminated
        losses = []
        for Q, optimizer in zip((first, second), critics, strict=True):
            losses.append(((Q(x, a) - y) ** 2).mean())
            optimizer.zero_grad()
            losses[-1].backward()
            optimizer.step()
        if step % 2:
            actor.zero_grad()
            (-first(x, mu(x)).mean()).backward()
            actor.step()
            with torch.no_grad():
                for target, source in zip(old, (mu, first, second), strict=True):
                    for t, s in zip(target.parameters(), source.parameters(), strict=True):
                        t.copy_(0.9 * t + 0.1 * s)
        report = td3.step(x, a, r, following, terminated)
        mean = sum(loss.item() for loss in losses) / 2
        assert math.isclose(report.critic_loss, mean, rel_tol=1e-9)
    ours = [td3.policy, *td3.critics, td3.target_policy, *td3.target_critics]
    for module, by_hand in zip(ours, [mu, first, second, *old], strict=True):
        assert torch.allclose(
            flatten(module.parameters()), flatten(by_hand.parameters()), rtol=1e-9, atol=1e-12
        )


def test_an_update_reports_the_last_step_of_the_actor_even_if_a_step_of_the_critics_came_after(
    generator,
):
    plugin = make(generator, actor="natural", policy_delay=2)
    batches = [Transitions(*batch(generator)) for _ in range(3)]
    expected = copy.deepcopy(plugin)
    changes = [expected.step(*vars(transitions).values()).action_change for transitions in batches]
    assert [math.isnan(change) for change in changes] == [True, False, True]
    plugin.generator.manual_seed(7)
    report = plugin.learn(batches)
    assert report.updates == 3
    assert report.action_change == changes[1] > 0
    assert math.isfinite(report.action_value)


def test_the_twins_begin_apart(generator):
    """Else they would stay one, and the lower of them be any."""
    observations = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    actions = spaces.Box(-1, 1, (2,), np.float32)
    config = TD3Config(hidden_sizes=(8,))
    td3 = TD3Agent.build(observations, actions, config, generator).algorithm
    first, second = (flatten(Q.parameters()) for Q in td3.critics)
    assert float((first - second).norm()) > 0.1 * float(first.norm())
    assert torch.equal(flatten(td3.critics.parameters()), flatten(td3.target_critics.parameters()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy_delay": 0}, "policy_delay must be at least 1"),
        ({"smoothing": -0.1}, "smoothing must be at least 0"),
        ({"smoothing_clip": math.nan}, "smoothing_clip must be at least 0"),
        ({"action_limit": 0.0}, "action_limit must be above 0"),
        ({"action_limit": math.nan}, "action_limit must be above 0"),
        ({"policy_delayy": 3}, r"unknown setting 'policy_delayy'.*did you mean 'policy_delay'"),
    ],
)
def test_settings_out_of_range_are_named(settings, message, generator):
    with pytest.raises(UsageError, match=message):
        make(generator, **settings)
