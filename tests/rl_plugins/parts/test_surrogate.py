"""L(π), E[KL(π_old ‖ π)] and the means they are taken with (theory, lines 6 and 10)."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import (
    Categorical,
    Independent,
    Normal,
    TransformedDistribution,
)
from torch.distributions.transforms import TanhTransform

from natgrad.flat import assign, flatten, gradient
from rl_plugins import A2C, NPG, PPO, TRPO
from rl_plugins.parts.surrogate import Surrogate
from rl_plugins.policies import mlp


class Discrete(nn.Module):
    """Works on states (B, 3) and on sequences of them (B, T, 3)."""

    def __init__(self, generator):
        super().__init__()
        self.network = mlp(3, (8,), 4, output_gain=1.0, generator=generator).double()

    def forward(self, x):
        return Categorical(logits=self.network(x))


class Gaussian(nn.Module):
    def __init__(self, generator):
        super().__init__()
        self.network = mlp(3, (8,), 2, output_gain=1.0, generator=generator).double()
        self.log_std = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x):
        mean = self.network(x)
        return Independent(Normal(mean, self.log_std.exp().expand_as(mean)), 1)


@pytest.fixture(params=[Discrete, Gaussian], ids=["categorical", "normal"])
def policy(request, generator):
    return request.param(generator)


def batch(policy, generator, shape=(12, 5)):
    x = torch.randn(*shape, 3, generator=generator, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        actions = policy(x).sample()
    advantages = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x, actions, advantages, torch.rand(shape, generator=generator) < 0.6


def moved(policy, generator, by=0.3):
    """The policy some way from where it was: π_old is no longer π."""
    parameters = list(policy.parameters())
    theta = flatten(parameters)
    noise = torch.randn(theta.shape, generator=generator, dtype=theta.dtype)
    assign(parameters, theta + by * noise)
    return policy


def test_at_the_old_policy_it_is_the_mean_advantage_and_every_ratio_is_1(policy, generator):
    x, actions, advantages, mask = batch(policy, generator)
    for chosen in (None, mask):
        surrogate = Surrogate(policy, x, actions, advantages, chosen)
        pi = policy(x)
        assert torch.equal(surrogate.ratio(pi), torch.ones(12, 5, dtype=torch.float64))
        expected = advantages if chosen is None else advantages[chosen]
        assert torch.allclose(surrogate.objective(pi), expected.mean(), rtol=1e-14)
        assert abs(surrogate.improvement(pi).item()) < 1e-15
        assert abs(surrogate.kl(pi).item()) < 1e-15


def test_its_gradient_at_the_old_policy_is_that_of_log_probability_times_advantage(
    policy, generator
):
    x, actions, advantages, _ = batch(policy, generator)
    parameters = list(policy.parameters())
    surrogate = Surrogate(policy, x, actions, advantages)
    g = gradient(surrogate.objective(policy(x)), parameters)
    score = gradient((policy(x).log_prob(actions) * advantages).mean(), parameters)
    assert torch.allclose(g, score, rtol=1e-12, atol=1e-15)


def test_the_gradient_of_the_kl_at_the_old_policy_is_0_and_away_from_it_is_not(policy, generator):
    x, actions, advantages, mask = batch(policy, generator)
    parameters = list(policy.parameters())
    surrogate = Surrogate(policy, x, actions, advantages, mask)
    assert gradient(surrogate.kl(policy(x)), parameters).abs().max() < 1e-15
    moved(policy, generator)
    assert gradient(surrogate.kl(policy(x)), parameters).abs().max() > 1e-3


def test_a_masked_mean_is_the_mean_of_the_selected_and_so_is_its_gradient(policy, generator):
    x, actions, advantages, mask = batch(policy, generator)
    parameters = list(policy.parameters())
    masked = Surrogate(policy, x, actions, advantages, mask)
    selected = Surrogate(policy, x[mask], actions[mask], advantages[mask])
    assert masked.count == selected.count == int(mask.sum())
    moved(policy, generator)
    for measure in ("objective", "improvement", "kl"):
        one, other = (
            getattr(s, measure)(policy(states)) for s, states in ((masked, x), (selected, x[mask]))
        )
        assert torch.allclose(one, other, rtol=1e-13)
        pair = gradient(one, parameters), gradient(other, parameters)
        assert torch.allclose(*pair, rtol=1e-11, atol=1e-15)
    assert torch.allclose(masked.entropy(), selected.entropy(), rtol=1e-13)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -1e300])
def test_whatever_stands_in_masked_actions_and_advantages_reaches_no_value_and_no_gradient(
    policy, poison, generator
):
    x, actions, advantages, mask = batch(policy, generator)
    parameters = list(policy.parameters())
    clean = Surrogate(policy, x, actions, advantages, mask)
    outside = -100 if actions.dtype == torch.int64 else poison  # in no distribution's support
    dirty_actions = actions.clone()
    dirty_actions[~mask] = outside
    dirty = Surrogate(policy, x, dirty_actions, advantages.masked_fill(~mask, poison), mask)
    moved(policy, generator, by=0.01)
    pi = policy(x)
    assert torch.equal(dirty.objective(pi), clean.objective(pi))
    assert torch.equal(dirty.improvement(pi), clean.improvement(pi))
    score = dirty.mean(pi.log_prob(dirty.actions) * dirty.advantages)
    for value in (dirty.objective(policy(x)), score):
        assert gradient(value, parameters).isfinite().all()


def test_a_mask_of_everything_is_no_mask(policy, generator):
    x, actions, advantages, mask = batch(policy, generator)
    plain = Surrogate(policy, x, actions, advantages)
    full = Surrogate(policy, x, actions, advantages, torch.ones_like(mask))
    pi = moved(policy, generator)(x)
    assert torch.allclose(plain.objective(pi), full.objective(pi), rtol=1e-14)
    assert torch.allclose(plain.kl(pi), full.kl(pi), rtol=1e-14)


def test_means_are_taken_in_float64(generator):
    policy = Discrete(generator).float()
    advantages = torch.full((4096,), 1e8)
    advantages[0] += 4096.0  # lost in a mean of float32, which has 8 to spare at 1e8
    x, actions = torch.zeros(4096, 3), torch.zeros(4096, dtype=torch.int64)
    mask = torch.ones(4096, dtype=torch.bool)
    for chosen in (None, mask):
        surrogate = Surrogate(policy, x, actions, advantages, chosen)
        assert surrogate.objective(policy(x)).item() == 1e8 + 1.0


def test_the_old_policy_stays_where_it_was_when_a_distribution_shares_a_parameters_memory(
    generator,
):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2, dtype=torch.float64))

        def forward(self, x):
            shape = (len(x), 2)
            return Independent(Normal(x.new_zeros(shape), self.scale.expand(shape)), 1)

    policy = Shared()
    x, actions, advantages, _ = batch(policy, generator, shape=(30,))
    surrogate = Surrogate(policy, x, actions, advantages)
    with torch.no_grad():
        policy.scale.fill_(2.0)
    # KL of N(0, 1) to N(0, 2²), two dimensions.
    expected = 2 * (math.log(2) + 1 / 8 - 1 / 2)
    assert abs(surrogate.kl(policy(x)).item() - expected) < 1e-14
    assert abs(surrogate.entropy().item() - 2 * 0.5 * math.log(2 * math.pi * math.e)) < 1e-14


def test_a_part_is_the_surrogate_of_those_samples(policy, generator):
    x, actions, advantages, mask = batch(policy, generator)
    whole = Surrogate(policy, x, actions, advantages, mask)
    index = torch.tensor([7, 2, 2, 11])
    small = Surrogate(policy, x[index], actions[index], advantages[index], mask[index])
    part = whole.part(index)
    assert part.count == small.count
    # Without π_old on these states it has no KL, rather than that of other states.
    with pytest.raises(AttributeError):
        part.kl(policy(x[index]))
    old = frozen_copy(policy)
    with_old = whole.part(index, old)
    pi = moved(policy, generator)(x[index])
    assert torch.allclose(part.objective(pi), small.objective(pi), rtol=1e-14)
    assert torch.allclose(with_old.kl(pi), small.kl(pi), rtol=1e-14)


def frozen_copy(policy):
    twin = type(policy)(torch.Generator())
    twin.load_state_dict(policy.state_dict())
    return twin


def test_nested_observations_are_cut_leaf_by_leaf(generator):
    network = Discrete(generator)

    def policy(observations):
        left, (right,) = observations["left"], observations["right"]
        return network(torch.cat([left, right], dim=-1))

    x, actions, advantages, _ = batch(network, generator, shape=(10,))
    nested = {"left": x[:, :1], "right": (x[:, 1:],)}
    part = Surrogate(policy, nested, actions, advantages).part(torch.tensor([3, 0]))
    assert torch.equal(part.observations["left"], x[[3, 0], :1])
    assert torch.equal(part.observations["right"][0], x[[3, 0], 1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": torch.ones(12, 4, dtype=torch.bool)}, r"mask is \(12, 4\) torch.bool"),
        ({"mask": torch.ones(12, 5)}, "mask is .* torch.float32; expected bool"),
        ({"mask": torch.zeros(12, 5, dtype=torch.bool)}, "the batch is empty"),
        ({"advantages": torch.ones(12, 1)}, r"advantages \(12, 1\)"),
        ({"advantages": torch.ones(60)}, r"advantages \(60,\)"),
        ({"actions": torch.zeros(5, dtype=torch.int64), "mask": torch.ones(12, 5) > 0},
         r"actions are \(5,\); expected the leading dimensions of the mask, \(12, 5\)"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(change, message, generator):
    policy = Discrete(generator)
    x, actions, advantages, _ = batch(policy, generator)
    arguments = {"actions": actions, "advantages": advantages, "mask": None, **change}
    with pytest.raises(ValueError, match=message):
        Surrogate(policy, x, **arguments)


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    # SGD: Adam and RMSprop would divide what atanh has rounded by √v + ε.
    [(NPG, {}), (TRPO, {}), (PPO, {"optimizer": "SGD"}), (A2C, {"optimizer": "SGD"})],
)
def test_a_distribution_without_a_formula_for_its_entropy_is_learnt_from_all_the_same(
    algorithm, settings, generator
):
    """Squashed normals: their entropy is reported as NaN, and the step is that of any other."""

    class Squashed(Gaussian):
        def forward(self, x):
            mean = self.network(x)
            base = Normal(mean, self.log_std.exp().expand_as(mean))
            return Independent(TransformedDistribution(base, [TanhTransform()]), 1)

    policy = Squashed(generator)
    x = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    actions = 1.8 * torch.rand(40, 2, generator=generator, dtype=torch.float64) - 0.9
    before = flatten(policy.parameters())
    plain = Gaussian(generator)
    plain.load_state_dict(policy.state_dict())
    report = algorithm(policy, **settings).step(x, actions, actions[:, 0])
    assert math.isnan(report.entropy)
    # The squashing cancels from ratios, KL and Fisher matrix alike.
    algorithm(plain, **settings).step(x, torch.atanh(actions), actions[:, 0])
    assert not torch.equal(flatten(policy.parameters()), before)
    assert torch.allclose(
        flatten(policy.parameters()), flatten(plain.parameters()), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("algorithm", [NPG, TRPO])
def test_the_fisher_matrix_is_estimated_on_samples_that_are_not_padding_alone(algorithm, generator):
    """A stride that met nothing but padding would leave no matrix at all."""
    first, second = Discrete(generator), Discrete(generator)
    second.load_state_dict(first.state_dict())
    x, actions, advantages, _ = batch(first, generator, shape=(40,))
    mask = torch.arange(40) % 2 == 1
    algorithm(first, fisher_stride=2).step(x, actions, advantages, mask)
    algorithm(second, fisher_stride=2).step(x[mask], actions[mask], advantages[mask])
    pair = flatten(first.parameters()), flatten(second.parameters())
    assert torch.allclose(*pair, rtol=1e-9, atol=1e-12)
