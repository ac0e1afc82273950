"""Defects of other libraries' natural-gradient updates, as found in their code: ours has none.

The names say the defect, the comments in whose code it stands.
"""

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, kl_divergence

import rl_plugins.parts.natural_gradient
from natgrad import LineSearchStatus, Status
from natgrad.flat import flatten
from rl_plugins import A2C, DDPG, NPG, PPO, TD3, TRPO
from rl_plugins.policies import mlp


class Policy(nn.Module):
    """Counts its calls, and how many of them recorded a graph."""

    def __init__(self, generator):
        super().__init__()
        self.network = mlp(3, (8,), 4, output_gain=1.0, generator=generator)
        self.calls = self.recorded = 0

    def forward(self, x):
        self.calls += 1
        self.recorded += torch.is_grad_enabled()
        return Categorical(logits=self.network(x))


@pytest.fixture
def policy(generator):
    return Policy(generator).double()


@pytest.fixture
def batch(generator):
    x = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    actions = torch.randint(4, (60,), generator=generator)
    return x, actions, torch.randn(60, generator=generator, dtype=torch.float64)


@pytest.fixture
def fisher(monkeypatch):
    """The Fisher matrices that updates make."""
    made = []
    original = rl_plugins.parts.natural_gradient.Fisher  # type: ignore[attr-defined]

    def recording(*arguments, **options):
        made.append(original(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(rl_plugins.parts.natural_gradient, "Fisher", recording)
    return made


@pytest.mark.parametrize("algorithm", [TRPO, NPG])
def test_there_is_one_product_an_iteration_and_none_for_the_step_size(
    algorithm, policy, batch, fisher
):
    """All of them spend one more for sᵀFs, sb3-contrib and OmniSafe one for x₀, PFRL two each.

    Ours spends one more to look at the true residual, where it is about to say CONVERGED.
    """
    report = algorithm(policy).step(*batch)
    assert fisher[0].products == report.cg_iterations + (report.cg_status is Status.CONVERGED)
    report = algorithm(policy, cg_iterations=5).step(*batch)
    assert fisher[1].products == report.cg_iterations == 5


def test_the_forward_pass_of_the_fisher_matrix_runs_once(policy, batch, fisher):
    """OmniSafe, skrl and Spinning Up's descendants run it for every product."""
    report = NPG(policy).step(*batch)
    # π_old, the surrogate's, the Fisher matrix's; after the step two that record nothing.
    assert (policy.calls, policy.recorded) == (5, 2)
    assert report.cg_iterations > 4


def test_the_line_search_records_no_graph(policy, batch):
    """garage and skrl search with gradients enabled."""
    report = TRPO(policy, max_kl=0.5, damping=0.0).step(*batch)
    assert report.evaluations >= 1
    assert policy.recorded == 2


def test_subsampling_takes_the_fisher_matrix_and_not_the_gradient(policy, batch):
    """sb3-contrib's sub_sampling_factor strides both."""
    whole = TRPO(policy).step(*batch)
    other = Policy(torch.Generator().manual_seed(0)).double()
    part = TRPO(other, fisher_stride=5).step(*batch)
    assert part.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-12)
    assert part.expected_improvement != pytest.approx(whole.expected_improvement, rel=1e-6)


def test_a_candidate_is_held_to_its_own_part_of_the_expected_improvement(policy, batch):
    """skrl multiplies the expectation of the last candidate again: 1, ½, ⅛."""
    report = TRPO(policy, max_kl=0.3, damping=0.01, accept_ratio=0.5).step(*batch)
    assert report.status is LineSearchStatus.ACCEPTED
    assert report.improvement >= 0.5 * report.step_fraction * report.expected_improvement


@pytest.mark.parametrize("max_kl", [1e-6, 1e-3, 0.1])
def test_the_bound_has_no_slack_and_is_that_of_old_from_new(max_kl, policy, batch):
    """baselines and MushroomRL allow 1.5 δ; sb3-contrib bounds KL(new ‖ old)."""
    x = batch[0]
    old = Categorical(logits=policy(x).logits.detach().clone())
    report = TRPO(policy, max_kl=max_kl).step(*batch)
    assert report.status is LineSearchStatus.ACCEPTED
    kl = float(kl_divergence(old, policy(x)).mean().detach())
    assert report.kl <= max_kl
    assert report.kl == pytest.approx(kl, rel=1e-6)


def test_the_damping_does_not_shorten_the_step(policy, batch):
    """All of them scale by sᵀ(F + λI)s, and never reach δ: "backtracking almost never triggers"."""
    reached = []
    for damping in (0.01, 0.1, 10.0):
        other = Policy(torch.Generator().manual_seed(0)).double()
        reached.append(NPG(other, max_kl=1e-4, damping=damping, cg_iterations=100).step(*batch).kl)
    assert reached == pytest.approx([1e-4] * 3, rel=0.02)


def test_chunks_give_the_same_step(policy, batch):
    """No library chunks its products; all run out of memory with large rollouts."""
    NPG(policy).step(*batch)
    other = Policy(torch.Generator().manual_seed(0)).double()
    NPG(other, fisher_chunk_size=7).step(*batch)
    assert torch.allclose(flatten(policy.parameters()), flatten(other.parameters()), rtol=1e-9)


# A second value for each setting: one that must change what a step does.
CHANGED = {
    "max_kl": 0.002, "damping": 3.0, "cg_iterations": 1, "cg_tolerance": 0.9, "fisher_stride": 3,
    "accept_ratio": 0.9, "shrink": 0.3, "objective": "penalty", "clip": 0.01, "penalty": 50.0,
    "target_kl": 1e-5, "epochs": 2, "batch_size": 13, "optimizer": "SGD", "learning_rate": 0.05,
    "learning_rate_steps": 200, "entropy_coefficient": 0.5, "max_gradient_norm": 1e-3,
    "discount": 0.5, "actor_learning_rate": 0.1, "critic_learning_rate": 0.1, "target_rate": 0.5,
    "actor": "natural", "max_action_change": 0.1, "policy_delay": 1, "smoothing": 0.9,
    "smoothing_clip": 0.01, "action_limit": 0.05,
}  # fmt: skip
# What a setting needs beside it to have anything to change.
TOGETHER: dict[tuple[str, str], dict[str, Any]] = {
    ("TRPO", "accept_ratio"): {"max_kl": 2.0, "damping": 0.0},
    ("TRPO", "shrink"): {"max_kl": 2.0, "damping": 0.0},
    ("TRPO", "max_backtracks"): {"max_kl": 2.0, "damping": 0.0, "accept_ratio": 0.5},
    ("A2C", "max_kl"): {"optimizer": "KFAC", "learning_rate": 100.0},
    ("A2C", "damping"): {"optimizer": "KFAC", "learning_rate": 100.0},
    ("PPO", "penalty"): {"objective": "penalty"},
    ("PPO", "target_kl"): {"objective": "penalty", "learning_rate": 5e-4},
    ("PPO", "max_kl"): {"learning_rate": 0.05},
    ("A2C", "max_gradient_norm"): {"optimizer": "SGD"},
    ("PPO", "max_gradient_norm"): {"optimizer": "SGD"},
    **{(name, s): {"actor": "natural"} for name in ("DDPG", "TD3")
       for s in ("max_action_change", "damping", "cg_iterations")},
}  # fmt: skip
VALUES = {("TRPO", "max_backtracks"): 1, ("PPO", "max_kl"): 1e-4}
# The same result by another way: tested above.
SAME_RESULT = {"fisher_chunk_size"}


def settings_of(*algorithms):
    return [
        (algorithm, field.name)
        for algorithm in algorithms
        for field in dataclasses.fields(algorithm.Settings)
        if field.name not in SAME_RESULT
    ]


@pytest.mark.parametrize(("algorithm", "name"), settings_of(TRPO, NPG, PPO, A2C))
def test_no_setting_is_accepted_and_ignored(algorithm, name, batch):
    """Tianshou's TRPO ignores trust_region_size, its damping is fixed."""
    key = (algorithm.__name__, name)
    beside = TOGETHER.get(key, {})
    ends = []
    for extra in ({}, {name: VALUES.get(key, CHANGED.get(name))}):
        policy = Policy(torch.Generator().manual_seed(0)).double()
        learner = algorithm(policy, **{**beside, **extra})
        for _ in range(4):
            learner.step(*batch)
        ends.append(flatten(policy.parameters()))
    assert not torch.equal(*ends)


class Critic(nn.Module):
    def __init__(self, generator):
        super().__init__()
        self.network = mlp(5, (8,), 1, output_gain=1.0, generator=generator)

    def forward(self, x, actions):
        return self.network(torch.cat([x, actions], dim=1)).squeeze(1)


@pytest.mark.parametrize(("algorithm", "name"), settings_of(DDPG, TD3))
def test_no_setting_of_the_off_policy_family_is_accepted_and_ignored(algorithm, name, generator):
    x, y = torch.randn(2, 40, 3, generator=generator)
    actions = torch.rand(40, 2, generator=generator) * 2 - 1
    rewards = torch.randn(40, generator=generator)
    never = torch.zeros(40, dtype=torch.bool)
    beside = TOGETHER.get((algorithm.__name__, name), {})
    ends = []
    for extra in ({}, {name: CHANGED[name]}):
        seeded = torch.Generator().manual_seed(0)
        networks = [
            nn.Sequential(mlp(3, (8,), 2, output_gain=1.0, generator=seeded), nn.Tanh()),
            *(Critic(seeded) for _ in range(algorithm.critic_count)),
        ]
        learner = algorithm(*networks, **{**beside, **extra})
        for _ in range(4):
            learner.step(x, actions, rewards, y, never)
        ends.append(flatten([p for network in networks for p in network.parameters()]))
    assert not torch.equal(*ends)
