"""TRPO's and NPG's accepted steps keep their bound on the KL divergence, measured from outside, and
report what it was; of policies that are nearly certain of their actions too."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Bernoulli, Categorical, Independent

from bench.problems.accounts import PLUGINS, divergence, plugin_step
from natgrad import LineSearchStatus
from rl_plugins import NPG, TRPO


@pytest.mark.parametrize("name", PLUGINS)
def test_an_accepted_step_keeps_its_bound_and_its_report(name):
    accepted = 0

    @settings(max_examples=60)
    @given(st.integers(0, 2**20))
    def attempt(seed):
        nonlocal accepted
        account = plugin_step(name, seed)
        accepted += account.accepted
        assert not account.accepted or account.kept, account
        assert not account.accepted or account.true, account

    attempt()
    assert accepted > 30  # of 60


@pytest.mark.slow
@pytest.mark.parametrize("name", PLUGINS)
def test_it_does_so_for_a_thousand_policies(name):
    for seed in range(1000):
        account = plugin_step(name, seed)
        assert not account.accepted or (account.kept and account.true), (seed, account)


class Peaked(nn.Module):
    """Logits of a size at which float32's probabilities are 0 and 1."""

    def __init__(self, size, bits, generator):
        super().__init__()
        self.weight = nn.Parameter(size / 32**0.5 * torch.randn(100, 32, generator=generator))
        self.bits = bits

    def forward(self, x):
        logits = x @ self.weight.mT
        if self.bits:
            return Independent(Bernoulli(logits=logits), 1)
        return Categorical(logits=logits)


@pytest.mark.parametrize("bits", [False, True])
@pytest.mark.parametrize("size", [1.0, 5.0, 28.0, 100.0])
@pytest.mark.parametrize("algorithm", [TRPO, NPG])
def test_policies_whose_probabilities_underflow_are_not_refused(algorithm, size, bits, generator):
    policy = Peaked(size, bits, generator)
    x = torch.randn(512, 32, generator=generator)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        actions = policy(x).sample()
        before = policy.weight.double() @ x.double().mT
    report = algorithm(policy, max_kl=0.01).step(x, actions, torch.randn(512, generator=generator))
    assert report.status is LineSearchStatus.ACCEPTED
    after = policy.weight.detach().double() @ x.double().mT
    true = divergence("bernoulli" if bits else "categorical", before.mT, after.mT, ())
    assert 0 < report.kl <= 0.01 * (2 if algorithm is NPG else 1)
    assert report.kl == pytest.approx(true, rel=1e-2)


@pytest.mark.parametrize("algorithm", [TRPO, NPG])
def test_a_policy_without_a_gradient_is_told_as_such(algorithm, generator):
    """It is certain beyond what its dtype can tell: log p of its actions is 0 whatever it does."""

    class Certain(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.tensor([1e4, 0.0, 0.0]))

        def forward(self, x):
            return Categorical(logits=self.bias + 0 * x)

    x, actions = torch.zeros(8, 3), torch.zeros(8, dtype=torch.long)
    report = algorithm(Certain()).step(x, actions, torch.ones(8))
    assert report.status is LineSearchStatus.ZERO_GRADIENT
    assert "certain" in report.status.value
    assert report.step_fraction == 0
