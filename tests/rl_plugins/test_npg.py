"""NPG against dense algebra; its KL is δ up to third order (theory, lines 5 to 8)."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from natgrad import Fisher, LineSearchStatus, Status
from natgrad.flat import assign, flatten, gradient
from rl_plugins import NPG, TRPO
from rl_plugins.policies import mlp

EXACT: dict[str, Any] = {"damping": 0.1, "cg_iterations": 200, "cg_tolerance": 1e-12}


class Discrete(nn.Module):
    def __init__(self, generator, validate=None):
        super().__init__()
        self.network = mlp(3, (8,), 4, output_gain=1.0, generator=generator).double()
        self.validate = validate

    def forward(self, x):
        return Categorical(logits=self.network(x), validate_args=self.validate)


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


def batch(policy, generator, size=64):
    x = torch.randn(size, 3, generator=generator, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        actions = policy(x).sample()
    return x, actions, torch.randn(size, generator=generator, dtype=torch.float64)


@torch.no_grad()
def frozen(policy, x):
    return policy(x)


def dense_step(policy, x, actions, advantages, max_kl, stride=1):
    """α s with (K + λI) s = g solved directly, and K."""
    parameters = list(policy.parameters())
    g = gradient((policy(x).log_prob(actions) * advantages).mean(), parameters)
    K = Fisher(policy(x[::stride]), parameters).to_dense()
    s = torch.linalg.solve(K + EXACT["damping"] * torch.eye(len(g), dtype=g.dtype), g)
    return (2 * max_kl / (s @ K @ s)).sqrt() * s, K


def test_the_step_is_that_of_dense_algebra_and_is_taken_whole(policy, generator):
    x, actions, advantages = batch(policy, generator)
    theta = flatten(policy.parameters())
    step, K = dense_step(policy, x, actions, advantages, 0.01)
    assert abs(float(0.5 * step @ K @ step) - 0.01) < 1e-15
    report = NPG(policy, max_kl=0.01, **EXACT).step(x, actions, advantages)
    assert report.status is LineSearchStatus.ACCEPTED
    assert report.cg_status is Status.CONVERGED
    assert report.step_fraction == 1.0
    assert torch.allclose(flatten(policy.parameters()), theta + step, rtol=1e-8, atol=1e-10)


def test_the_kl_of_the_step_is_delta_to_third_order(policy, generator):
    """√δ is the length of the step: halved, the error of KL ≈ δ falls to an eighth."""
    x, actions, advantages = batch(policy, generator)
    start = {k: v.clone() for k, v in policy.state_dict().items()}
    old = frozen(policy, x)
    bounds = [1e-3 / 4**k for k in range(4)]
    errors = []
    for max_kl in bounds:
        policy.load_state_dict(start)
        report = NPG(policy, max_kl=max_kl, **EXACT).step(x, actions, advantages)
        kl = float(kl_divergence(old, frozen(policy, x)).mean())
        assert abs(report.kl - kl) < 1e-13
        errors.append(abs(kl - max_kl))
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(abs(slope - 3) < 0.15 for slope in slopes), slopes


def test_the_improvement_of_the_step_is_the_expected_one_to_second_order(policy, generator):
    x, actions, advantages = batch(policy, generator)
    start = {k: v.clone() for k, v in policy.state_dict().items()}
    errors = []
    for max_kl in (1e-7, 1e-7 / 4, 1e-7 / 16):
        policy.load_state_dict(start)
        report = NPG(policy, max_kl=max_kl, **EXACT).step(x, actions, advantages)
        errors.append(abs(report.improvement - report.expected_improvement))
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(abs(slope - 2) < 0.15 for slope in slopes), slopes


@pytest.mark.parametrize("power", [-60, -20, 20, 60])
def test_the_step_is_free_of_the_scale_of_the_advantages(policy, power, generator):
    x, actions, advantages = batch(policy, generator)
    start = {k: v.clone() for k, v in policy.state_dict().items()}
    NPG(policy).step(x, actions, advantages)
    expected = flatten(policy.parameters())
    policy.load_state_dict(start)
    NPG(policy).step(x, actions, advantages * 2.0**power)
    assert torch.allclose(flatten(policy.parameters()), expected, rtol=1e-9)


def test_trpo_takes_a_part_of_its_step(policy, generator):
    x, actions, advantages = batch(policy, generator)
    parameters = list(policy.parameters())
    start = flatten(parameters)
    NPG(policy, max_kl=0.01).step(x, actions, advantages)
    step = flatten(parameters) - start
    assign(parameters, start)
    report = TRPO(policy, max_kl=0.01).step(x, actions, advantages)
    assert report.status is LineSearchStatus.ACCEPTED
    expected = start + report.step_fraction * step
    assert torch.allclose(flatten(parameters), expected, rtol=1e-9, atol=1e-12)


def test_a_stride_estimates_the_metric_on_some_states_and_the_gradient_on_all(policy, generator):
    x, actions, advantages = batch(policy, generator)
    theta = flatten(policy.parameters())
    step, _ = dense_step(policy, x, actions, advantages, 0.01, stride=3)
    NPG(policy, max_kl=0.01, fisher_stride=3, **EXACT).step(x, actions, advantages)
    assert torch.allclose(flatten(policy.parameters()), theta + step, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["advantages", "observations"])
def test_what_is_not_finite_leaves_the_parameters_bitwise(poison, where, generator):
    # Validation would refuse a NaN among the observations before anything is computed.
    policy = Discrete(generator, validate=None if where == "advantages" else False)
    x, actions, advantages = batch(policy, generator)
    (x if where == "observations" else advantages)[3] = poison
    before = flatten(policy.parameters()).view(torch.int64)
    report = NPG(policy).step(x, actions, advantages)
    assert report.status is LineSearchStatus.NONFINITE
    assert report.step_fraction == 0
    assert math.isnan(report.kl)
    assert torch.equal(flatten(policy.parameters()).view(torch.int64), before)


@pytest.mark.parametrize(
    ("max_kl", "evaluations"), [(1e-2, 1), (1e300, 0)],
    ids=["the distribution overflows", "the step overflows"],
)  # fmt: skip
def test_a_step_that_is_too_long_is_taken_back_bitwise(max_kl, evaluations, generator):
    policy = Discrete(generator, validate=False).float()
    x, actions, advantages = batch(policy.double(), generator)
    policy.float()
    theta = flatten(policy.parameters())
    before = theta.view(torch.int32)

    def overflow_once_moved(module, inputs, pi):
        moved = not torch.equal(flatten(module.parameters()), theta)
        return Categorical(logits=pi.logits * math.inf, validate_args=False) if moved else None

    if evaluations:
        policy.register_forward_hook(overflow_once_moved)
    report = NPG(policy, max_kl=max_kl).step(x.float(), actions, advantages.float())
    assert report.status is LineSearchStatus.NONFINITE
    assert report.evaluations == evaluations
    assert report.step_fraction == 0
    assert torch.equal(flatten(policy.parameters()).view(torch.int32), before)


def test_a_step_beyond_the_range_of_logits_is_shortened_until_the_policy_is_one(generator):
    """In float32 half of these logits would be infinite, and the KL of all the rest is finite."""
    policy = Discrete(generator, validate=False).float()
    x, actions, advantages = batch(policy.double(), generator)
    policy.float()
    report = NPG(policy, max_kl=1e75).step(x.float(), actions, advantages.float())
    assert report.status is LineSearchStatus.ACCEPTED
    assert 1 < report.kl <= 2e75
    assert bool(torch.isfinite(flatten(policy.parameters())).all())


def test_an_error_in_the_policy_after_the_step_leaves_no_candidate_behind(policy, generator):
    x, actions, advantages = batch(policy, generator)
    before = flatten(policy.parameters())

    def fail_once_moved(module, inputs):
        if not torch.equal(flatten(module.parameters()), before):
            raise KeyboardInterrupt

    policy.register_forward_pre_hook(fail_once_moved)
    with pytest.raises(KeyboardInterrupt):
        NPG(policy).step(x, actions, advantages)
    assert torch.equal(flatten(policy.parameters()), before)


def test_without_an_advantage_there_is_no_step(policy, generator):
    x, actions, advantages = batch(policy, generator)
    before = flatten(policy.parameters())
    report = NPG(policy).step(x, actions, 0 * advantages)
    assert report.status is LineSearchStatus.ZERO_STEP
    assert report.evaluations == 0
    assert torch.equal(flatten(policy.parameters()), before)


@pytest.mark.parametrize("certainty", [4.0, 8.0, 12.0])
def test_a_nearly_certain_policy_is_not_undone_by_one_step(certainty, generator):
    """sᵀKs vanishes there, and √(2δ/sᵀKs) explodes: the KL came to be a hundred times δ."""
    x = torch.eye(3).repeat(20, 1)
    actions = torch.randint(3, (60,), generator=generator)
    advantages = torch.where(actions == x.argmax(dim=1), 0.1, 1.0)

    class Policy(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(certainty * torch.eye(3))

        def forward(self, x):
            return Categorical(logits=x @ self.weight)

    report = NPG(Policy(), max_kl=0.01).step(x, actions, advantages)
    assert report.kl <= 2 * 0.01
    assert report.status is LineSearchStatus.ACCEPTED
