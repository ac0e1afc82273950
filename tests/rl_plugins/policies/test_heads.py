"""The distributions of the heads against probabilities written out by hand."""

import math
from itertools import product

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from natgrad import Fisher
from natgrad.flat import flatten
from rl_plugins.policies import sample
from rl_plugins.policies.heads import (
    BernoulliHead,
    CategoricalHead,
    GaussianHead,
    JointHead,
    MultiCategoricalHead,
)

SIZES = (3, 1, 4)
HEADS = {
    "categorical": lambda: CategoricalHead(4),
    "multicategorical": lambda: MultiCategoricalHead(SIZES),
    "bernoulli": lambda: BernoulliHead(3),
    "gaussian": lambda: GaussianHead(2, -0.3),
    "joint": lambda: JointHead(
        [CategoricalHead(3), JointHead([BernoulliHead(1), MultiCategoricalHead((2, 2))])]
    ),
}


def softmax(logits, valid=None):
    """exp(z) / Σ exp(z) over what is valid."""
    odds = torch.exp(logits)
    if valid is not None:
        odds = odds * valid
    return odds / odds.sum(dim=-1, keepdim=True)


def actions_of(name):
    """Every value of a head whose values can be counted."""
    ranges = {
        "categorical": [range(4)],
        "multicategorical": [range(size) for size in SIZES],
        "bernoulli": [range(2)] * 3,
        "joint": [range(3), range(2), range(2), range(2)],
    }[name]
    values = torch.tensor(list(product(*ranges)))
    return values.squeeze(1) if name == "categorical" else values.double()


def by_hand(name, z):
    """The probability of every value of :func:`actions_of`, in their order, for outputs z."""
    if name == "categorical":
        return softmax(z)
    if name == "multicategorical":
        tables = [softmax(part) for part in torch.split(z, list(SIZES))]
    elif name == "bernoulli":
        tables = [torch.stack([1 / (1 + bit.exp()), 1 / (1 + (-bit).exp())]) for bit in z]
    else:
        tables = [
            softmax(z[:3]), torch.stack([1 - torch.sigmoid(z[3]), torch.sigmoid(z[3])]),
            softmax(z[4:6]), softmax(z[6:8]),
        ]  # fmt: skip
    cells = [math.prod(cell) for cell in product(*[table.unbind() for table in tables])]
    return torch.stack(cells)


DISCRETE = [name for name in HEADS if name != "gaussian"]


def outputs(head, generator, size=5, spread=2.0):
    return spread * torch.randn(size, head.outputs, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", DISCRETE)
def test_log_probabilities_entropy_and_kl_are_those_of_the_table(name, generator):
    head = HEADS[name]()
    z, other = outputs(head, generator), outputs(head, generator)
    actions = actions_of(name)
    for row, elsewhere in zip(z, other, strict=True):
        p, q = by_hand(name, row), by_hand(name, elsewhere)
        assert abs(float(p.sum()) - 1) < 1e-12
        # Batches of any shape: here one row for every action.
        pi, rho = (head(x.expand(len(actions), -1)) for x in (row, elsewhere))
        assert torch.allclose(pi.log_prob(actions), p.log(), rtol=1e-10, atol=1e-12)
        assert torch.allclose(pi.entropy(), -(p * p.log()).sum(), rtol=1e-10)
        assert torch.allclose(kl_divergence(pi, rho), (p * (p / q).log()).sum(), rtol=1e-8)
        likeliest = actions[p.argmax()]
        assert torch.equal(pi.mode[0].to(likeliest.dtype), likeliest)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3)])
@pytest.mark.parametrize("name", HEADS)
def test_the_batch_shape_is_that_of_the_outputs(name, shape, generator):
    head = HEADS[name]()
    pi = head(torch.randn(*shape, head.outputs, generator=generator))
    actions = sample(pi, generator)
    assert pi.batch_shape == torch.Size(shape)
    assert pi.log_prob(actions).shape == pi.entropy().shape == torch.Size(shape)
    assert actions.shape == pi.mode.shape == pi.batch_shape + pi.event_shape


def test_a_gaussian_is_its_density_written_out(generator):
    head = GaussianHead(2, -0.3).double()
    with torch.no_grad():
        head.log_std += torch.tensor([0.0, 0.7])  # type: ignore[misc]
    mean, x = outputs(head, generator), outputs(head, generator)
    deviation = head.log_std.exp()
    exponent = -0.5 * ((x - mean) / deviation).square()
    density = (exponent - head.log_std - 0.5 * math.log(2 * math.pi)).sum(dim=1)
    pi = head(mean)
    assert torch.allclose(pi.log_prob(x), density, rtol=1e-12)
    entropy = (head.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum()
    assert torch.allclose(pi.entropy(), entropy.expand(5), rtol=1e-12)
    assert torch.equal(pi.mode, mean)


@pytest.mark.parametrize("name", DISCRETE)
def test_the_fisher_matrix_is_the_mean_of_the_scores_squared(name, generator):
    """Σ_a π(a) ∇log π(a) ∇log π(a)ᵀ by enumeration, in the weights of a linear network."""
    head = HEADS[name]()
    x = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    weight = torch.randn(2, head.outputs, generator=generator, dtype=torch.float64)
    weight.requires_grad_()
    actions = actions_of(name)
    expected = torch.zeros(weight.numel(), weight.numel(), dtype=torch.float64)
    for state in x:
        pi = head((state @ weight).expand(len(actions), -1))
        for log_prob in pi.log_prob(actions):
            score = flatten(torch.autograd.grad(log_prob, weight, retain_graph=True))
            expected += log_prob.exp().detach() * torch.outer(score, score) / len(x)
    F = Fisher(head(x @ weight), [weight]).to_dense()
    assert torch.allclose(F, expected, rtol=1e-9, atol=1e-12)


def test_the_fisher_matrix_of_a_gaussian_is_that_of_its_mean_and_log_deviation(generator):
    """Jᵀ diag(1/σ²) J for the mean; 2 for log σ; no cross term."""
    head = GaussianHead(2, -0.3).double()
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    precision = torch.diag((-2 * head.log_std.detach()).exp())
    mean_block = torch.kron(x.T @ x / len(x), precision)
    F = Fisher(head(x @ weight), [weight, head.log_std]).to_dense()
    expected = torch.block_diag(mean_block, 2 * torch.eye(2, dtype=torch.float64))
    assert torch.allclose(F, expected, rtol=1e-10, atol=1e-12)


# A mask for each head that knows one, with a row that allows one action, and rows that allow some.
MASKS = {
    "categorical": [[1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 1, 1]],
    "multicategorical": [
        [1, 0, 1, 1, 0, 1, 1, 0], [0, 1, 0, 1, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1, 1, 1],
    ],
    "joint": [[1, 0, 1, 0, 1, 1, 1], [0, 0, 1, 1, 0, 0, 1], [1, 1, 1, 1, 1, 1, 1]],
}  # fmt: skip


def is_valid(name, action, mask):
    """Whether every choice of an action is allowed."""
    sizes = {"categorical": (4,), "multicategorical": SIZES, "joint": (3, 2, 2)}[name]
    choices = action.flatten()
    if name == "joint":
        choices = choices[[0, 2, 3]]  # the bit in between has no mask
    parts = torch.split(mask, list(sizes))
    return all(bool(part[int(a)]) for part, a in zip(parts, choices, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MASKS)
def test_an_invalid_action_has_probability_0_and_the_others_sum_to_1(name, dtype, generator):
    head, actions = HEADS[name](), actions_of(name)
    # Logits that would be next to certain: a penalty of fixed size would not hide them.
    z = 50 * outputs(head, generator, 3).to(dtype)
    z[:, 1] = 1000
    for row, bits in zip(z, torch.tensor(MASKS[name]).bool(), strict=True):
        many = (len(actions), -1)
        pi = head(row.expand(many), bits.expand(many))
        p = pi.log_prob(actions).exp()
        valid = torch.tensor([is_valid(name, action, bits) for action in actions])
        assert valid.any()
        assert torch.equal(p[~valid], torch.zeros_like(p[~valid]))
        assert abs(float(p.sum()) - 1) < 1e-5
        assert is_valid(name, pi.mode[0], bits)
        draws = sample(head(row.expand(500, -1), bits.expand(500, -1)), generator)
        assert all(is_valid(name, draw, bits) for draw in draws.unique(dim=0))


def test_valid_actions_have_the_softmax_over_what_is_valid(generator):
    head, mask = CategoricalHead(4), torch.tensor(MASKS["categorical"]).bool()
    z = outputs(head, generator, 3)
    pi = head(z, mask)
    assert torch.allclose(pi.probs, softmax(z, mask), rtol=1e-12)


@pytest.mark.parametrize("name", MASKS)
def test_no_gradient_reaches_the_logit_of_an_invalid_action(name, generator):
    head, mask = HEADS[name](), torch.tensor(MASKS[name]).bool()
    z = outputs(head, generator, 3).requires_grad_()
    pi = head(z, mask)
    old = head(outputs(head, generator, 3), mask)
    hidden = ~mask
    if name == "joint":  # the bit between the choices has no mask
        hidden = torch.cat([hidden[:, :3], torch.zeros(3, 1).bool(), hidden[:, 3:]], dim=1)
    divergences = kl_divergence(old, pi), kl_divergence(pi, old)
    for scalar in (pi.log_prob(pi.mode), pi.entropy(), *divergences):
        (gradient,) = torch.autograd.grad(scalar.sum(), z, retain_graph=True)
        assert torch.isfinite(gradient).all()
        assert not gradient[hidden].any()
        assert gradient[~hidden].any()


@pytest.mark.parametrize("name", MASKS)
def test_entropy_kl_and_fisher_matrix_are_those_of_the_valid_actions(name, generator):
    head, actions = HEADS[name](), actions_of(name)
    z = outputs(head, generator, 3).requires_grad_()
    elsewhere = outputs(head, generator, 3)
    for row, bits in enumerate(torch.tensor(MASKS[name]).bool()):
        many = (len(actions), -1)
        valid = torch.tensor([is_valid(name, action, bits) for action in actions])
        log_p, log_q = (
            head(x[row].expand(many), bits.expand(many)).log_prob(actions)[valid]
            for x in (z, elsewhere)
        )
        p = log_p.exp().detach()
        pi, rho = head(z[row], bits), head(elsewhere[row], bits)
        assert torch.allclose(pi.entropy(), -(p * log_p).sum(), rtol=1e-9, atol=1e-12)
        kl = (p * (log_p - log_q)).sum()
        assert torch.allclose(kl_divergence(pi, rho), kl, rtol=1e-9, atol=1e-12)
        expected = torch.zeros(head.outputs, head.outputs, dtype=torch.float64)
        for probability, log_prob in zip(p, log_p, strict=True):
            score = torch.autograd.grad(log_prob, z, retain_graph=True)[0][row]
            expected += probability * torch.outer(score, score)
        # Of one state: the parameters are its outputs.
        own = z[row].detach().requires_grad_()
        F = Fisher(head(own.unsqueeze(0), bits.unsqueeze(0)), [own]).to_dense()
        assert torch.allclose(F, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", MASKS)
def test_where_nothing_is_valid_the_mask_says_nothing(name, generator):
    """The observation after a last step often allows nothing; log-probabilities must stay."""
    head, actions = HEADS[name](), actions_of(name)
    z = outputs(head, generator, 1).expand(len(actions), -1)
    nothing = torch.zeros(len(actions), head.choices, dtype=torch.bool)
    assert torch.equal(head(z, nothing).log_prob(actions), head(z).log_prob(actions))
    uniform = head(torch.zeros_like(z), nothing).log_prob(actions).exp()
    assert torch.allclose(uniform, torch.full_like(uniform, 1 / len(actions)))


@pytest.mark.parametrize(
    ("sizes", "mask", "probabilities"),
    [
        ((2, 3), [0, 0, 0, 1, 0], [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]),
        ((3, 2), [1, 0, 0, 0, 0], [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]),
    ],
)
def test_of_several_choices_only_the_one_without_a_valid_category_is_free(
    sizes, mask, probabilities
):
    pi = MultiCategoricalHead(sizes)(torch.zeros(5), torch.tensor(mask).bool())
    assert pi.base_dist.probs.tolist() == probabilities


@pytest.mark.parametrize("name", ["bernoulli", "gaussian"])
def test_a_head_without_choices_takes_no_mask_into_account(name, generator):
    head = HEADS[name]()
    z = torch.randn(4, head.outputs, generator=generator)
    assert head.choices == 0
    assert torch.equal(head(z, torch.zeros(4, 0).bool()).mode, head(z).mode)


def test_padding_of_unequal_choices_is_never_drawn_nor_counted(generator):
    """Two choices of one category are certain, whatever the third: no entropy from the padding."""
    head = MultiCategoricalHead((1, 5, 1))
    pi = head(10 * torch.randn(2_000, 7, generator=generator))
    draws = sample(pi, generator)
    assert draws.amax(0).tolist() == [0, 4, 0]
    alone = CategoricalHead(5)(torch.zeros(1, 5))
    assert torch.allclose(head(torch.zeros(1, 7)).entropy(), alone.entropy())


def test_the_likeliest_bits_exist_at_even_odds():
    """torch's Bernoulli has NaN there: what a new network gives where it sees zeros."""
    for head in (BernoulliHead(2), JointHead([BernoulliHead(1), CategoricalHead(1)])):
        assert head(torch.zeros(3, 2)).mode.isfinite().all()
    assert BernoulliHead(3)(torch.tensor([[-0.1, 0.0, 0.1]])).mode.tolist() == [[0, 1, 1]]


@pytest.mark.parametrize("name", HEADS)
def test_draws_come_as_often_as_they_are_probable(name, generator):
    head = HEADS[name]()
    z = outputs(head, generator, 1, spread=1.0)
    count = 20_000
    draws = sample(head(z.expand(count, -1)), generator).double()
    if name == "gaussian":
        base = head(z).base_dist
        assert torch.allclose(draws.mean(0), base.loc[0], atol=5 * math.exp(-0.3) / count**0.5)
        assert torch.allclose(draws.std(0), base.scale[0].double(), rtol=5 / (2 * count) ** 0.5)
        return
    actions, p = actions_of(name).double(), by_hand(name, z[0])
    matches = (draws.view(count, 1, -1) == actions.view(1, len(actions), -1)).all(dim=2)
    assert matches.sum() == count
    frequencies = matches.double().mean(dim=0)
    # Five standard deviations of a frequency.
    assert ((frequencies - p).abs() <= 5 * (p * (1 - p) / count).sqrt()).all()


def test_the_deviation_of_a_gaussian_is_one_for_all_states_and_learnt(generator):
    head = GaussianHead(2, -1.0)
    pi = head(torch.randn(6, 2, generator=generator))
    assert isinstance(pi, Independent)
    assert isinstance(pi.base_dist, Normal)
    assert torch.allclose(pi.stddev, torch.tensor(math.exp(-1.0)))
    pi.entropy().sum().backward()
    assert head.log_std.grad is not None
    assert head.log_std.grad.tolist() == [6, 6]
