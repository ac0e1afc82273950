"""KL divergences by log-probabilities: torch's where that is finite, and right where it is not."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import (
    Bernoulli,
    Categorical,
    Gamma,
    Independent,
    Normal,
    OneHotCategorical,
    TransformedDistribution,
    kl_divergence,
)
from torch.distributions.transforms import TanhTransform

from natgrad.curvature import metrics

DOUBLE = torch.float64
FAMILIES = {
    "categorical": lambda x: Categorical(logits=x),
    "categorical of probabilities": lambda x: Categorical(probs=x.softmax(-1)),
    "one hot": lambda x: OneHotCategorical(logits=x),
    "bernoulli": lambda x: Bernoulli(logits=x),
    "bernoulli of probabilities": lambda x: Bernoulli(probs=x.sigmoid()),
    "bits": lambda x: Independent(Bernoulli(logits=x), 1),
    "planes": lambda x: Independent(Categorical(logits=x), 1),
    "normal": lambda x: Normal(x, x.exp()),
    "diagonal normal": lambda x: Independent(Normal(x, 1 + x**2), 2),
    "squashed": lambda x: TransformedDistribution(Normal(x, 1.0), [TanhTransform()]),
    "gamma": lambda x: Gamma(x.exp(), x.exp()),
}


def pair(family, generator, size=1.0):
    a, b = (size * torch.randn(4, 3, 5, generator=generator, dtype=DOUBLE) for _ in range(2))
    return FAMILIES[family](a), FAMILIES[family](b)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_that_of_torch_where_nothing_underflows(family, generator):
    old, new = pair(family, generator)
    torch.testing.assert_close(
        metrics.kl_divergence(old, new), kl_divergence(old, new), rtol=1e-9, atol=1e-12
    )
    assert bool((metrics.kl_divergence(old, old).abs() <= 1e-12).all())


def test_independent_ones_add_up_in_sequences_and_mappings(generator):
    pairs = [pair(name, generator) for name in ("categorical", "bits")]
    expected = sum(metrics.kl_divergence(old, new) for old, new in pairs)
    old, new = zip(*pairs, strict=True)
    torch.testing.assert_close(metrics.kl_divergence(old, new), expected)
    by_name = dict(zip("ab", old, strict=True)), dict(zip("ba", reversed(new), strict=True))
    torch.testing.assert_close(metrics.kl_divergence(*by_name), expected)


@given(
    st.lists(st.floats(-1e4, 1e4), min_size=3, max_size=3),
    st.lists(st.floats(-1e4, 1e4), min_size=3, max_size=3),
    st.sampled_from([torch.float32, DOUBLE]),
)
def test_peaked_categoricals_are_finite_and_right(a, b, dtype):
    a, b = torch.tensor(a, dtype=dtype), torch.tensor(b, dtype=dtype)
    found = metrics.kl_divergence(Categorical(logits=a), Categorical(logits=b))
    log_p, log_q = a.double().log_softmax(-1), b.double().log_softmax(-1)
    expected = (log_p.exp() * (log_p - log_q)).sum()
    # The distribution rounds its normalised logits once, relative to their size.
    size = float(torch.maximum(log_p.abs(), log_q.abs()).amax())
    assert math.isfinite(float(found))
    assert abs(float(found) - float(expected)) <= 8 * torch.finfo(dtype).eps * max(size, 1.0)
    assert float(found) >= -1e-12 * max(size, 1.0)


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_certain_bits_are_finite_and_right(a, b):
    p, q = Bernoulli(logits=torch.tensor(a)), Bernoulli(logits=torch.tensor(b))
    found = float(metrics.kl_divergence(p, q))
    a, b = (torch.tensor(x, dtype=DOUBLE).float().double() for x in (a, b))
    p_yes, p_no = torch.sigmoid(a), torch.sigmoid(-a)
    soft = torch.nn.functional.softplus
    expected = float(p_yes * (soft(-b) - soft(-a)) + p_no * (soft(b) - soft(a)))
    assert math.isfinite(found)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_what_is_impossible_is_infinitely_far(dtype):
    sure = torch.tensor([1.0, 0.0, 0.0], dtype=dtype)
    half = torch.tensor([0.5, 0.5, 0.0], dtype=dtype)
    for make in (lambda p: Categorical(probs=p), lambda p: Categorical(logits=p.log())):
        assert float(metrics.kl_divergence(make(half), make(sure))) == math.inf
        assert float(metrics.kl_divergence(make(sure), make(half))) == pytest.approx(math.log(2))
        assert float(metrics.kl_divergence(make(sure), make(sure))) == 0
    bits = [Bernoulli(probs=torch.tensor(p, dtype=dtype)) for p in (0.5, 1.0)]
    assert float(metrics.kl_divergence(*bits)) == math.inf
    assert float(metrics.kl_divergence(*reversed(bits))) == pytest.approx(math.log(2))


def test_masked_categories_have_no_part(generator):
    logits = torch.randn(6, 4, generator=generator)
    masked = [
        torch.cat([x, torch.full((6, 2), torch.finfo(torch.float32).min)], dim=1)
        for x in (logits, logits.flip(0))
    ]
    found = metrics.kl_divergence(*(Categorical(logits=x) for x in masked))
    expected = kl_divergence(Categorical(logits=logits), Categorical(logits=logits.flip(0)))
    torch.testing.assert_close(found.float(), expected)


@pytest.mark.parametrize("family", ["categorical", "bernoulli", "normal"])
def test_it_can_be_differentiated_in_the_new_distribution(family, generator):
    a, b = (torch.randn(3, 4, generator=generator, dtype=DOUBLE) for _ in range(2))
    b.requires_grad_()
    ours, theirs = (
        torch.autograd.grad(kl(FAMILIES[family](a), FAMILIES[family](b)).sum(), b)[0]
        for kl in (metrics.kl_divergence, kl_divergence)
    )
    torch.testing.assert_close(ours, theirs)


def test_gradients_are_finite_where_probabilities_are_zero():
    old = Categorical(logits=torch.tensor([0.0, -math.inf]), validate_args=False)
    logits = torch.tensor([1.0, -math.inf], requires_grad=True)
    new = Categorical(logits=logits, validate_args=False)
    (found,) = torch.autograd.grad(metrics.kl_divergence(old, new), logits)
    assert not bool(found[0].isnan())


def test_families_without_a_divergence_are_refused_as_torch_does():
    with pytest.raises(NotImplementedError):
        metrics.kl_divergence(Categorical(logits=torch.zeros(2)), Normal(0.0, 1.0))
