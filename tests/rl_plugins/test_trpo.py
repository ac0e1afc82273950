"""TRPO against dense algebra, its bound, its refusals (theory, line 11)."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, Normal

from natgrad import Fisher, LineSearchStatus, Status
from natgrad.flat import flatten, gradient
from rl_plugins import TRPO, TRPOConfig, UsageError, train
from rl_plugins.agents import TRPOAgent
from rl_plugins.data.collector import RolloutCollector
from rl_plugins.data.environments import make_environments
from rl_plugins.policies import ObservationNormaliser, mlp


class Discrete(nn.Module):
    def __init__(self, generator):
        super().__init__()
        self.network = mlp(3, (8,), 4, output_gain=1.0, generator=generator)

    def forward(self, x):
        return Categorical(logits=self.network(x))


class Gaussian(nn.Module):
    def __init__(self, generator):
        super().__init__()
        self.network = mlp(3, (8,), 2, output_gain=1.0, generator=generator)
        self.log_std = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        mean = self.network(x)
        return Independent(Normal(mean, self.log_std.exp().expand_as(mean)), 1)


@pytest.fixture(params=[Discrete, Gaussian], ids=["categorical", "normal"])
def policy(request, generator):
    return request.param(generator).double()


def batch(policy, generator, size=64):
    x = torch.randn(size, 3, generator=generator, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        actions = policy(x).sample()
    return x, actions, torch.randn(size, generator=generator, dtype=torch.float64)


def kl_old_new(old, new):
    """Σ_a π_old log(π_old / π_new), or its closed form for normals, written out by hand."""
    if isinstance(old, Categorical):
        return (old.probs * (old.logits - new.logits)).sum(-1).mean()
    old, new = old.base_dist, new.base_dist
    ratio = (old.scale / new.scale) ** 2
    distance = ((old.loc - new.loc) / new.scale) ** 2
    return (0.5 * (ratio + distance - 1 - ratio.log())).sum(-1).mean()


def frozen(distribution):
    if isinstance(distribution, Categorical):
        return Categorical(logits=distribution.logits.detach().clone())
    base = distribution.base_dist
    return Independent(Normal(base.loc.detach().clone(), base.scale.detach().clone()), 1)


def test_the_step_is_that_of_dense_algebra(policy, generator):
    x, actions, advantages = batch(policy, generator)
    parameters = list(policy.parameters())
    theta = flatten(parameters)
    log_prob = policy(x).log_prob(actions)
    surrogate = (torch.exp(log_prob - log_prob.detach()) * advantages).mean()
    g = gradient(surrogate, parameters)
    K = Fisher(policy(x), parameters).to_dense()
    s = torch.linalg.solve(K + 0.1 * torch.eye(len(g)), g)
    step = (2 * 0.01 / (s @ K @ s)).sqrt() * s

    trpo = TRPO(policy, max_kl=0.01, damping=0.1, cg_iterations=200, cg_tolerance=1e-10)
    report = trpo.step(x, actions, advantages)
    assert report.status is LineSearchStatus.ACCEPTED
    assert report.cg_status is Status.CONVERGED
    expected = theta + report.step_fraction * step
    assert torch.allclose(flatten(parameters), expected, rtol=1e-6, atol=1e-8)
    assert abs(report.expected_improvement - float(g @ step)) < 1e-8
    assert abs(report.gradient_norm - float(g.norm())) < 1e-12


@pytest.mark.parametrize("max_kl", [1e-4, 1e-2, 0.5])
@pytest.mark.parametrize("options", [{}, {"fisher_stride": 5}, {"fisher_chunk_size": 10}])
def test_the_measured_kl_old_new_is_within_the_bound_after_every_accepted_step(
    policy, generator, max_kl, options
):
    trpo = TRPO(policy, max_kl=max_kl, **options)
    accepted = 0
    for _ in range(10):
        x, actions, advantages = batch(policy, generator)
        old = frozen(policy(x))
        report = trpo.step(x, actions, advantages)
        if report.status is LineSearchStatus.ACCEPTED:
            accepted += 1
            new = frozen(policy(x))
            kl = float(kl_old_new(old, new))
            assert kl <= max_kl * (1 + 1e-9)
            assert abs(kl - report.kl) <= 1e-9
            # Backwards it is another number: the direction is that of the theory.
            assert report.kl != float(kl_old_new(new, old))
            ratio = torch.exp(new.log_prob(actions) - old.log_prob(actions))
            gained = float((ratio * advantages).mean() - advantages.mean())
            assert abs(gained - report.improvement) < 1e-9
            assert gained > 0
    assert accepted >= 5


@pytest.mark.parametrize(
    ("settings", "poison", "status"),
    [
        ({}, float("nan"), LineSearchStatus.NONFINITE),
        ({}, float("inf"), LineSearchStatus.NONFINITE),
        ({"accept_ratio": 0.999, "max_kl": 1.0, "max_backtracks": 3}, None,
         LineSearchStatus.NO_IMPROVEMENT),
        ({"damping": 100.0, "max_kl": 5.0, "max_backtracks": 0, "accept_ratio": 0.0}, None,
         LineSearchStatus.CONSTRAINT_VIOLATED),
    ],
    ids=["nan", "infinity", "no improvement", "beyond the bound"],
)  # fmt: skip
def test_a_refused_step_leaves_the_parameters_bitwise(settings, poison, status, generator):
    policy = Gaussian(generator).double()
    x, actions, advantages = batch(policy, generator)
    if poison is not None:
        advantages[3] = poison
    before = flatten(policy.parameters()).view(torch.int64)
    report = TRPO(policy, **settings).step(x, actions, advantages)
    assert report.status is status
    assert report.step_fraction == 0
    assert torch.equal(flatten(policy.parameters()).view(torch.int64), before)


def test_without_an_advantage_there_is_no_step(policy, generator):
    x, actions, _ = batch(policy, generator)
    report = TRPO(policy).step(x, actions, torch.zeros(64, dtype=torch.float64))
    assert report.status is LineSearchStatus.ZERO_STEP
    assert report.cg_status is Status.ZERO_RHS


def test_a_distribution_that_shares_memory_with_a_parameter_is_measured_rightly(generator):
    """σ used as it is: writing a candidate into the parameter must not move π_old with it."""

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean = nn.Parameter(torch.zeros(2))
            self.scale = nn.Parameter(torch.ones(2))

        def forward(self, x):
            shape = (len(x), 2)
            return Independent(Normal(self.mean.expand(shape), self.scale.expand(shape)), 1)

    policy = Shared()
    x = torch.zeros(256, 1)
    actions = torch.randn(256, 2, generator=generator)
    advantages = actions[:, 0]
    old = frozen(policy(x))
    report = TRPO(policy, max_kl=0.1).step(x, actions, advantages)
    assert report.status is LineSearchStatus.ACCEPTED
    assert report.kl > 0.01
    assert abs(report.kl - float(kl_old_new(old, frozen(policy(x))))) < 1e-5


def test_the_step_is_free_of_the_scale_of_the_advantages(policy, generator):
    x, actions, advantages = batch(policy, generator)
    start = {k: v.clone() for k, v in policy.state_dict().items()}
    results = []
    for scale in (1.0, 2.0**-40, 2.0**40):
        policy.load_state_dict(start)
        TRPO(policy).step(x, actions, advantages * scale)
        results.append(flatten(policy.parameters()))
    assert torch.allclose(results[0], results[1], rtol=1e-9)
    assert torch.allclose(results[0], results[2], rtol=1e-9)


def test_frozen_parameters_stay(policy, generator):
    first = next(policy.parameters())
    first.requires_grad_(False)
    before = first.clone()
    report = TRPO(policy).step(*batch(policy, generator))
    assert report.status is LineSearchStatus.ACCEPTED
    assert torch.equal(first, before)


def test_no_gradients_are_left_behind(policy, generator):
    TRPO(policy).step(*batch(policy, generator))
    assert all(parameter.grad is None for parameter in policy.parameters())


def test_an_error_in_the_policy_during_the_search_leaves_no_candidate_behind(policy, generator):
    x, actions, advantages = batch(policy, generator)
    before = flatten(policy.parameters())
    calls = 0

    def fail(module, inputs):
        nonlocal calls
        calls += 1
        if calls == 4:  # π_old, the surrogate, the Fisher matrix, the first candidate
            raise KeyboardInterrupt

    policy.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        TRPO(policy).step(x, actions, advantages)
    assert torch.equal(flatten(policy.parameters()), before)


def test_no_gradient_comes_in_through_advantages_or_actions(policy, generator):
    x, actions, advantages = batch(policy, generator)
    start = {k: v.clone() for k, v in policy.state_dict().items()}
    expected = TRPO(policy).step(x, actions, advantages)
    policy.load_state_dict(start)
    shared = next(policy.parameters()).sum()
    nothing = shared - shared.detach()  # first, or the advantages would be rounded at its size
    attached = TRPO(policy).step(x, actions, advantages + nothing)
    assert attached.gradient_norm == expected.gradient_norm


def test_an_empty_batch_is_refused(policy, generator):
    x, actions, advantages = batch(policy, generator)
    with pytest.raises(ValueError, match="the batch is empty"):
        TRPO(policy).step(x[:0], actions[:0], advantages[:0])


def test_a_typo_in_a_setting_is_named(policy):
    with pytest.raises(UsageError, match=r"unknown setting 'max_kll'.*did you mean 'max_kl'"):
        TRPO(policy, max_kll=0.1)


def test_settings_that_a_policy_of_ones_own_would_ignore_are_refused(policy):
    with pytest.raises(UsageError, match="unknown setting 'hidden_sizes'"):
        TRPO(policy, hidden_sizes=(8,))


def test_shapes_that_would_broadcast_are_refused(policy, generator):
    x, actions, advantages = batch(policy, generator)
    with pytest.raises(ValueError, match=r"advantages \(64, 1\); both must be \(B,\)"):
        TRPO(policy).step(x, actions, advantages[:, None])
    with pytest.raises(ValueError, match="Independent"):
        TRPO(policy).step(x, actions, advantages[:1])


def test_a_step_is_no_agent(policy):
    assert not any(hasattr(TRPO(policy), name) for name in ("build", "behaviour", "update"))


@pytest.mark.parametrize(
    ("task", "best", "slack"),
    [("test/IdentityDiscrete-v0", 1.0, 0.0), ("test/IdentityBox-v0", 0.0, 0.05)],
)
@pytest.mark.slow  # test_identity.py learns every action space
@pytest.mark.parametrize("critic", ["gauss-newton", "adam"])
def test_the_identity_task_is_learnt(task, best, slack, critic, tmp_path):
    run = train(
        "trpo", task, run_dir=tmp_path / "run", total_steps=8_000, environments=4,
        rollout_length=64, max_kl=0.05, hidden_sizes=(16,), evaluations=0, critic=critic,
    )  # fmt: skip
    assert run.evaluation is not None
    assert run.evaluation.mean >= best - slack


@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1"])
def test_a_whole_update_keeps_the_bound_the_move_of_the_statistics_included(task, generator):
    """KL(the policy that acted ‖ the policy after ``update``), on the rollout it acted in."""
    environments = make_environments(task, 4)
    spaces = environments.single_observation_space, environments.single_action_space
    trpo = TRPOAgent.build(*spaces, TRPOConfig(hidden_sizes=(16,)), generator)
    # No layer can undo the clipping: a state beyond ±10 deviations moves with the statistics, and
    # whether a rollout meets one is luck. Without it what is left is float32's rounding of a layer.
    normalisers = [m for m in trpo.policy.modules() if isinstance(m, ObservationNormaliser)]
    assert normalisers
    for normaliser in normalisers:
        normaliser.clip = math.inf
    behaviour = trpo.behaviour(4, explore=True)
    collector = RolloutCollector(environments, behaviour, seed=0, generator=generator)
    for update in range(6):
        rollout = collector.collect(100)
        x = rollout.observations.flatten(0, 1)
        acted = frozen(trpo.policy(x))
        report: Any = trpo.update(rollout)
        if update:  # the first rollout primes the statistics
            kl = float(kl_old_new(acted, frozen(trpo.policy(x))))
            assert kl <= report.max_kl * (1 + 1e-3)
            if report.status is LineSearchStatus.ACCEPTED:
                assert abs(kl - report.kl) < 1e-3 * report.max_kl
