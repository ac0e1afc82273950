"""A joint distribution is the product of its components, in everything that is asked of it."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Categorical, Independent, Normal, kl_divergence

from natgrad import Fisher
from rl_plugins.policies import Joint, sample

COLUMNS = 5  # of a joint value: a choice, two numbers, a bit, a number
BATCHES = [(), (1,), (6,), (2, 3)]


def parts(generator, *batch):
    def randn(*shape):
        return torch.randn((*batch, *shape), generator=generator, dtype=torch.float64)

    return [
        Categorical(logits=randn(3), validate_args=False),
        Independent(Normal(randn(2), randn(2).exp(), validate_args=False), 1, validate_args=False),
        Joint([Bernoulli(logits=randn()), Normal(randn(), randn().exp())]),
    ]


def values(generator, *batch):
    """Component values, and the same side by side."""
    chosen = torch.randint(3, batch, generator=generator)
    numbers = torch.randn(*batch, 2, generator=generator, dtype=torch.float64)
    bit = torch.randint(2, batch, generator=generator).double()
    number = torch.randn(batch, generator=generator, dtype=torch.float64)
    inner = torch.stack([bit, number], dim=-1)
    return [chosen, numbers, inner], torch.cat([chosen.unsqueeze(-1), numbers, inner], dim=-1)


@pytest.mark.parametrize("batch", BATCHES)
def test_log_probability_entropy_and_kl_are_sums_over_the_components(batch, generator):
    p, q = parts(generator, *batch), parts(generator, *batch)
    separate, together = values(generator, *batch)
    log_prob = sum(part.log_prob(value) for part, value in zip(p, separate, strict=True))
    assert torch.allclose(Joint(p).log_prob(together), log_prob, rtol=1e-12)
    assert torch.allclose(Joint(p).entropy(), sum(part.entropy() for part in p), rtol=1e-12)
    kl: Any = sum(kl_divergence(a, b) for a, b in zip(p, q, strict=True))
    assert torch.allclose(kl_divergence(Joint(p), Joint(q)), kl, rtol=1e-12)
    assert Joint(p).batch_shape == log_prob.shape == torch.Size(batch)
    assert Joint(p).event_shape == (COLUMNS,)


@pytest.mark.parametrize("batch", [*BATCHES, (0,)])
def test_split_undoes_join(batch, generator):
    joint = Joint(parts(generator, *batch))
    separate, together = values(generator, *batch)
    assert torch.equal(joint.join(separate), together)
    for found, value in zip(joint.split(together), separate, strict=True):
        assert torch.equal(found, value.to(found.dtype))


@pytest.mark.parametrize("batch", [*BATCHES, (0,)])
def test_mode_and_draws_are_those_of_the_components_side_by_side(batch, generator):
    components = parts(generator, *batch)
    joint = Joint(components)
    pairs = zip(components, joint.widths, strict=True)
    modes = [part.mode.double().reshape(*batch, width) for part, width in pairs]
    assert torch.equal(joint.mode, torch.cat(modes, dim=-1))

    first, again = (torch.Generator().manual_seed(5) for _ in range(2))
    draws = joint.join([sample(part, first) for part in components])
    assert torch.equal(sample(joint, again), draws)
    assert draws.shape == (*batch, COLUMNS)


def test_torchs_own_draws_have_the_shape_and_the_support(generator):
    joint = Joint(parts(generator, 400))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = joint.sample()
    choice, _, inner = joint.split(draws)
    assert set(choice.tolist()) == {0, 1, 2}
    assert set(inner[:, 0].tolist()) == {0, 1}
    with pytest.raises(NotImplementedError, match="one value for each element"):
        joint.sample((2,))


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ((torch.float64, torch.float64), torch.float64),
        ((torch.float64, torch.int64), torch.float64),
        ((torch.float32, torch.int64), torch.float32),
        ((torch.int64, torch.int64), torch.float32),
        # 8 bits of mantissa could not tell the 257th category from the 258th.
        ((torch.bfloat16, torch.int64), torch.float32),
    ],
)
def test_values_are_joined_in_their_common_floating_point_type(dtypes, expected):
    joint = Joint([Bernoulli(0.5), Bernoulli(0.5)])
    joined = joint.join([torch.tensor(1).to(dtypes[0]), torch.tensor(257).to(dtypes[1])])
    assert joined.dtype == expected
    assert joined.tolist() == [1, 257]


def test_no_digit_of_a_double_precision_draw_is_lost(generator):
    components = [Normal(torch.zeros(9).double(), torch.ones(9).double()) for _ in range(2)]
    draws = sample(Joint(components), generator)
    assert not torch.equal(draws, draws.float().double())


def test_components_are_drawn_independently(generator):
    count, p, q = 40_000, torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.6, 0.4])
    joint = Joint([Categorical(p.expand(count, 3)), Categorical(q.expand(count, 2))])
    draws = sample(joint, generator).long()
    pairs = torch.bincount(2 * draws[:, 0] + draws[:, 1], minlength=6).view(3, 2) / count
    table = torch.outer(p, q)
    # Five standard deviations of a frequency.
    assert ((pairs - table).abs() <= 5 * (table * (1 - table) / count).sqrt()).all()


class Hybrid(nn.Module):
    """A choice among three, two numbers and a bit, from weights of their own and shared ones."""

    def __init__(self, generator):
        super().__init__()

        def parameter(*shape):
            values = 0.5 * torch.randn(*shape, generator=generator, dtype=torch.float64)
            return nn.Parameter(values)

        self.shared, self.choice, self.move = parameter(2, 2), parameter(2, 3), parameter(2, 2)
        self.log_std, self.bit = parameter(2), parameter(2)

    def components(self, x):
        hidden = torch.tanh(x @ self.shared)
        mean = hidden @ self.move
        return [
            Categorical(logits=hidden @ self.choice),
            Independent(Normal(mean, self.log_std.exp().expand_as(mean)), 1),
            Bernoulli(logits=hidden @ self.bit),
        ]

    def forward(self, x):
        return Joint(self.components(x))


def test_the_fisher_matrix_is_the_sum_of_the_components_and_block_diagonal_where_nothing_is_shared(
    generator,
):
    policy = Hybrid(generator)
    x = torch.randn(7, 2, generator=generator, dtype=torch.float64)
    parameters = list(policy.parameters())
    F = Fisher(policy(x), parameters).to_dense()
    alone = [Fisher(part, parameters).to_dense() for part in policy.components(x)]
    total: Any = sum(alone)
    assert torch.allclose(F, total, rtol=1e-12, atol=1e-14)

    own = parameters[1:]  # the choice's 6, the numbers' 4 + 2, the bit's 2
    blocks = torch.split(Fisher(policy(x), own).to_dense(), [6, 6, 2])
    for index, rows in enumerate(blocks):
        for other, block in enumerate(torch.split(rows, [6, 6, 2], dim=1)):
            assert bool(block.any()) is (index == other)


def test_the_fisher_matrix_is_the_hessian_of_the_kl(generator):
    policy = Hybrid(generator)
    x = torch.randn(7, 2, generator=generator, dtype=torch.float64)
    names, values = zip(*policy.named_parameters(), strict=True)
    sizes = [value.numel() for value in values]
    with torch.no_grad():
        old = copy.deepcopy(policy(x))

    def kl(theta):
        pieces = torch.split(theta, sizes)
        named = {n: p.view_as(v) for n, p, v in zip(names, pieces, values, strict=True)}
        return kl_divergence(old, torch.func.functional_call(policy, named, (x,))).mean()

    theta = torch.cat([value.detach().flatten() for value in values])
    hessian = torch.autograd.functional.hessian(kl, theta)
    assert torch.allclose(Fisher(policy(x), values).to_dense(), hessian, rtol=1e-9, atol=1e-10)


def test_components_of_different_batches_are_refused():
    with pytest.raises(ValueError, match=r"one batch shape, got \[\(2,\), \(3,\)\]"):
        Joint([Bernoulli(torch.ones(2) / 2), Bernoulli(torch.ones(3) / 2)])
