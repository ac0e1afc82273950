"""Exploration noise: its deviation, its memory from step to step, and who forgets."""

import math
from typing import Any

import pytest
import torch

from rl_plugins.policies import Exploring, GaussianNoise, OrnsteinUhlenbeckNoise

KINDS: dict[str, Any] = {
    "gaussian": GaussianNoise,
    "slow": OrnsteinUhlenbeckNoise,
    "fast": lambda scale: OrnsteinUhlenbeckNoise(scale, reversion=0.5),
}
CORRELATION = {"gaussian": 0.0, "slow": 0.85, "fast": 0.5}
STREAMS = torch.Size((20_000, 1))


def draws(noise, count, generator, shape=STREAMS):
    return torch.stack([noise.draw(shape, generator).clone() for _ in range(count)])


def close(found, expected, deviation):
    """Within five standard deviations of the estimate."""
    return abs(float(found) - expected) <= 5 * deviation


@pytest.mark.parametrize("scale", [0.0, 0.1, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_settles_at_the_deviation_that_it_is_given(kind, scale, generator):
    last = draws(KINDS[kind](scale), 60, generator)[-1]
    assert close(last.mean(), 0.0, scale / len(last) ** 0.5)
    assert close(last.std(), scale, scale / (2 * len(last)) ** 0.5)


@pytest.mark.parametrize("lag", [1, 3, 10])
@pytest.mark.parametrize("kind", KINDS)
def test_the_correlation_over_k_steps_is_the_kth_power(kind, lag, generator):
    series = draws(KINDS[kind](0.7), 60, generator)
    pair = torch.stack([series[-1 - lag].flatten(), series[-1].flatten()])
    found = torch.corrcoef(pair)[0, 1]
    assert close(found, CORRELATION[kind] ** lag, 1 / STREAMS[0] ** 0.5)


def test_the_deviation_grows_from_the_start_of_an_episode_as_the_recursion_says(generator):
    """Var x_t = σ² (1 − ρ^2t): the first step is the innovation alone."""
    series = draws(OrnsteinUhlenbeckNoise(0.5), 6, generator)
    for t, values in enumerate(series, start=1):
        expected = 0.5 * math.sqrt(1 - 0.85 ** (2 * t))
        assert close(values.std(), expected, expected / (2 * len(values)) ** 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_environments_and_dimensions_are_independent(kind, generator):
    shape = torch.Size((2, 20_000))
    last = draws(KINDS[kind](1.0), 30, generator, shape)[-1]
    assert close(torch.corrcoef(last)[0, 1], 0.0, 1 / shape[1] ** 0.5)
    neighbours = torch.stack([last[0, :-1], last[0, 1:]])
    assert close(torch.corrcoef(neighbours)[0, 1], 0.0, 1 / shape[1] ** 0.5)


def test_only_those_that_start_anew_forget():
    """Two streams from one generator, one told to forget: the others do not notice."""
    shape = torch.Size((4, 3))
    told, untold = OrnsteinUhlenbeckNoise(1.0), OrnsteinUhlenbeckNoise(1.0)
    first, second = (torch.Generator().manual_seed(0) for _ in range(2))
    before = draws(told, 5, first, shape)[-1], draws(untold, 5, second, shape)[-1]
    told.forget(torch.tensor([True, False, False, True]))
    after, expected = told.draw(shape, first), untold.draw(shape, second)
    assert torch.equal(after[1:3], expected[1:3])
    # What they have lost is the part ρ of where they were.
    lost = (expected - after)[[0, 3]]
    assert torch.allclose(lost, 0.85 * before[1][[0, 3]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_to_forget_before_the_first_draw_is_nothing(kind, generator):
    noise = KINDS[kind](1.0)
    noise.forget(torch.ones(4).bool())
    assert noise.draw(torch.Size((4, 2)), generator).shape == (4, 2)


def test_a_change_of_the_number_of_environments_begins_anew(generator):
    noise = OrnsteinUhlenbeckNoise(1.0)
    draws(noise, 50, generator, torch.Size((2, 1)))
    values = noise.draw(torch.Size((20_000, 1)), generator)
    expected = math.sqrt(1 - 0.85**2)
    assert close(values.std(), expected, expected / (2 * len(values)) ** 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_the_generators_alone_and_what_was_drawn_stays(kind):
    shape = torch.Size((3, 2))
    both = []
    for _ in range(2):
        noise, generator = KINDS[kind](0.3), torch.Generator().manual_seed(1)
        kept = [noise.draw(shape, generator) for _ in range(4)]
        copies = [value.clone() for value in kept]
        noise.draw(shape, generator)
        assert all(map(torch.equal, kept, copies))
        both.append(copies)
    assert all(map(torch.equal, *both))


def exploring(noise, random=lambda: False):
    """An agent whose action is 0.9 times what it observes."""
    return Exploring(lambda x: 0.9 * x, lambda actions: actions, noise, random)


def test_without_noise_the_agent_acts_by_its_policy_alone(generator):
    x = torch.ones(5, 2)
    before = generator.get_state()
    assert torch.equal(exploring(None, lambda: True).act(x, generator), 0.9 * x)
    assert torch.equal(generator.get_state(), before)


def test_noisy_actions_are_the_policys_plus_the_noise_clipped_to_the_range(generator):
    x = torch.linspace(-1, 1, 2_000).unsqueeze(1)
    first, again = (torch.Generator().manual_seed(2) for _ in range(2))
    actions = exploring(GaussianNoise(0.5)).act(x, first)
    expected = 0.9 * x + GaussianNoise(0.5).draw(x.shape, again)
    assert torch.equal(actions, expected.clamp(-1, 1))
    assert actions.abs().max() == 1


def test_while_it_warms_up_the_agent_acts_uniformly_over_the_whole_range(generator):
    actions = exploring(GaussianNoise(0.1), lambda: True).act(torch.ones(40_000, 1), generator)
    assert close(actions.mean(), 0.0, 1 / (3 * len(actions)) ** 0.5)
    shares = torch.histc(actions, 8, -1, 1) / len(actions)
    assert all(close(share, 1 / 8, (7 / 64 / len(actions)) ** 0.5) for share in shares)
    assert actions.abs().max() <= 1


def test_the_noise_of_an_agent_forgets_with_its_episodes(generator):
    noise = OrnsteinUhlenbeckNoise(1.0)
    agent = exploring(noise)
    agent.act(torch.zeros(2, 1), generator)
    agent.forget(torch.tensor([True, False]))
    still = exploring(None)
    still.forget(torch.tensor([True, False]))  # nothing to forget, and no error
    fixed = torch.Generator().manual_seed(3)
    first = noise.draw(torch.Size((2, 1)), fixed)
    innovation = math.sqrt(1 - 0.85**2) * torch.randn(2, 1, generator=fixed.manual_seed(3))
    assert torch.allclose(first[0], innovation[0])
    assert not torch.allclose(first[1], innovation[1])
