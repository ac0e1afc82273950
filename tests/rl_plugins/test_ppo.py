"""PPO: its objectives, its hard bound, its refusals (theory, lines 13 to 15)."""

import copy
import io
import math
from itertools import chain, pairwise
from typing import Any

import pytest
import torch
from scipy.optimize import brentq
from torch import nn
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from natgrad import LineSearchStatus
from natgrad.flat import assign, flatten, gradient
from rl_plugins import A2C, PPO, TRPO, PPOConfig, StepStatus, UsageError
from rl_plugins.agents import PPOAgent
from rl_plugins.critics import AdamRegression
from rl_plugins.data.collector import RolloutCollector
from rl_plugins.data.environments import make_environments
from rl_plugins.policies import mlp
from rl_plugins.ppo import clipped_objective

UNCLIPPED: dict[str, Any] = {"max_gradient_norm": 1e9}
PLAIN: dict[str, Any] = {"optimizer": "SGD", "learning_rate": 0.1, **UNCLIPPED}


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
        # Without validation, which raises where σ overflows before anything can be measured.
        normal = Normal(mean, self.log_std.exp().expand_as(mean), validate_args=False)
        return Independent(normal, 1, validate_args=False)


class Tabular(nn.Module):
    """A softmax policy with a logit for every state and action, uniform at first."""

    def __init__(self, states, actions):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(states, actions, dtype=torch.float64))

    def forward(self, states):
        return Categorical(logits=self.logits[states])


@pytest.fixture(params=[Discrete, Gaussian], ids=["categorical", "normal"])
def policy(request, generator):
    return request.param(generator)


def batch(policy, generator, size=50):
    x = torch.randn(size, 3, generator=generator, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        actions = policy(x).sample()
    return x, actions, torch.randn(size, generator=generator, dtype=torch.float64)


@torch.no_grad()
def frozen(policy, x):
    return copy.deepcopy(policy(x))


def bits(tree):
    """Every tensor of a state, as integers: NaN and −0 included."""
    if isinstance(tree, torch.Tensor):
        return tree.detach().contiguous().view(torch.uint8).tolist() if tree.ndim else tree.item()
    if isinstance(tree, dict):
        return {key: bits(value) for key, value in tree.items()}
    return [bits(value) for value in tree] if isinstance(tree, (list, tuple)) else tree


@pytest.mark.parametrize(
    ("ratio", "advantage", "flows"),
    [
        (1.1, 1.5, True), (0.9, -1.5, True),    # inside the band, for either sign
        (0.7, 1.5, True), (0.7, -1.5, False),   # below it: zero only for A < 0
        (1.3, 1.5, False), (1.3, -1.5, True),   # above it: zero only for A > 0
    ],
)  # fmt: skip
def test_the_gradient_of_the_clipped_objective_in_all_six_cases(ratio, advantage, flows):
    r = torch.tensor(ratio, requires_grad=True)
    value = clipped_objective(r, torch.tensor(advantage), 0.2)
    assert torch.autograd.grad(value, r)[0] == (advantage if flows else 0)
    clipped = min(max(ratio, 0.8), 1.2)
    assert abs(float(value.detach()) - min(ratio * advantage, clipped * advantage)) < 1e-6


@pytest.mark.parametrize("objective", ["clip", "penalty"])
def test_the_first_minibatch_moves_along_the_gradient_of_a2c(policy, objective, generator):
    """All ratios are 1 then: nothing is clipped, and the gradient of the KL is 0."""
    x, actions, advantages = batch(policy, generator)
    twin = copy.deepcopy(policy)
    before = flatten(policy.parameters())
    once: dict[str, Any] = {"objective": objective, "epochs": 1, "batch_size": 50}
    PPO(policy, **once, **PLAIN).step(x, actions, advantages)
    A2C(twin, **PLAIN).step(x, actions, advantages)
    assert not torch.equal(flatten(policy.parameters()), before)
    assert torch.allclose(
        flatten(policy.parameters()), flatten(twin.parameters()), rtol=1e-12, atol=1e-15
    )


@pytest.mark.parametrize("weight", [0.5, 20.0])
def test_policy_and_critic_climb_one_objective_each_in_its_own_parameters(
    policy, weight, generator
):
    """L^CLIP − c₁ (V − y)² + c₂ entropy, one backward pass for both, by hand.

    They share no parameter, and Adam's step has no use for the scale of a loss: c₁ cancels.
    """
    x, actions, advantages = batch(policy, generator)
    targets = torch.randn(50, generator=generator, dtype=torch.float64)
    critic = mlp(3, (8,), 1, output_gain=1.0, generator=generator).double()
    pi, V = copy.deepcopy(policy), copy.deepcopy(critic)
    climbers = torch.optim.SGD(pi.parameters(), 0.1), torch.optim.Adam(V.parameters(), 1e-2)
    ppo = PPO(policy, epochs=2, batch_size=50, entropy_coefficient=0.05, **PLAIN)
    regression = AdamRegression(
        critic, epochs=2, batch_size=50, learning_rate=1e-2, generator=generator
    )
    ppo.step(x, actions, advantages)
    regression.fit(critic, x, targets)

    old = frozen(pi, x).log_prob(actions)
    for _ in range(2):
        distribution = pi(x)
        ratio = torch.exp(distribution.log_prob(actions) - old)
        L = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()
        squares = (V(x).squeeze(-1) - targets).square().mean()
        for optimizer in climbers:
            optimizer.zero_grad()
        (-(L - weight * squares + 0.05 * distribution.entropy().mean())).backward()
        for optimizer in climbers:
            optimizer.step()
    # Adam's ε keeps a trace of the scale, beside a way of 2e-2.
    for ours, by_hand, atol in ((policy, pi, 1e-14), (critic, V, 1e-5)):
        pair = flatten(ours.parameters()), flatten(by_hand.parameters())
        assert torch.allclose(*pair, rtol=1e-10, atol=atol)


@pytest.mark.parametrize("objective", ["clip", "penalty"])
def test_an_update_is_the_loop_of_the_paper_written_out(policy, objective, generator):
    """Minibatches of every epoch in the generator's order, π_old that of the update's start."""
    x, actions, advantages = batch(policy, generator)
    twin, old = copy.deepcopy(policy), copy.deepcopy(policy)
    settings = {"epochs": 3, "batch_size": 16, "clip": 0.1, "penalty": 3.0, "optimizer": "SGD"}
    ppo = PPO(
        policy, objective=objective, learning_rate=0.3, entropy_coefficient=0.05,
        max_gradient_norm=0.1, generator=torch.Generator().manual_seed(5), **settings,
    )  # fmt: skip
    report = ppo.step(x, actions, advantages)

    order = torch.Generator().manual_seed(5)
    norms, start = [], frozen(twin, x)
    for _ in range(3):
        for index in torch.randperm(50, generator=order).split(16):
            pi, pi_old = twin(x[index]), frozen(old, x[index])
            A = advantages[index]
            r = torch.exp(pi.log_prob(actions[index]) - pi_old.log_prob(actions[index]))
            if objective == "clip":
                L = torch.minimum(r * A, r.clamp(0.9, 1.1) * A).mean()
            else:
                L = (r * A).mean() - 3.0 * kl_divergence(pi_old, pi).mean()
            parameters = list(twin.parameters())
            g = gradient(L + 0.05 * pi.entropy().mean(), parameters)
            norms.append(float(g.norm()))
            g = g * min(1.0, 0.1 / norms[-1])
            assign(parameters, flatten(parameters) + 0.3 * g)
    expected = flatten(twin.parameters())
    assert torch.allclose(flatten(policy.parameters()), expected, rtol=1e-4, atol=1e-6)
    assert min(norms) > 0.1  # the limit on the norm was at work
    assert abs(report.gradient_norm - sum(norms) / len(norms)) < 1e-4 * report.gradient_norm
    new = frozen(twin, x)
    ratio = torch.exp(new.log_prob(actions) - start.log_prob(actions))
    assert abs(report.kl - float(kl_divergence(start, new).mean())) < 1e-4 * report.kl
    assert report.clip_fraction == float(((ratio - 1).abs() > 0.1).double().mean())
    gained = float((ratio * advantages).mean() - advantages.mean())
    assert abs(report.improvement - gained) < 1e-4 * abs(gained)
    assert abs(report.entropy - float(start.entropy().mean())) < 1e-12


def constrained_optimum(advantages, delta):
    """max E_π[A] subject to KL(π_old ‖ π) = δ in one state, π_old uniform: π and β.

    Stationarity of Σ π A − β KL(π_old ‖ π) on the simplex: π_a = β π_old / (ν − A_a).
    """
    old = torch.full_like(advantages, 1 / len(advantages))

    def solution(nu):
        weights = old / (nu - advantages)
        return weights / weights.sum()

    def excess(log_gap):
        pi = solution(advantages.max() + math.exp(log_gap))
        return float((old * (old / pi).log()).sum()) - delta

    nu = advantages.max() + math.exp(brentq(excess, -20, 20))
    return solution(nu), float(1 / (old / (nu - advantages)).sum())


@pytest.mark.parametrize("delta", [0.5, 0.01, 1e-4])
def test_with_the_right_penalty_the_optimum_is_that_of_the_constrained_problem(delta):
    advantages = torch.tensor([0.3, -1.0, 2.0, 0.1, -0.4], dtype=torch.float64)
    best, beta = constrained_optimum(advantages, delta)
    policy = Tabular(1, 5)
    # One of each action: the mean over the batch is the expectation under π_old, exactly.
    states, actions = torch.zeros(5, dtype=torch.int64), torch.arange(5)
    ppo = PPO(
        policy, objective="penalty", penalty=beta, target_kl=delta, epochs=300, batch_size=5,
        optimizer="Rprop", learning_rate=1e-3, **UNCLIPPED,
    )  # fmt: skip
    report = ppo.step(states, actions, advantages)
    assert torch.allclose(policy(states[:1]).probs[0], best, rtol=1e-5)
    assert abs(report.kl - delta) < 1e-4 * delta
    assert ppo.penalty == beta  # the KL came out at its target: nothing to adapt


def test_for_a_small_bound_trpo_and_the_penalty_go_the_same_way():
    """One quadratic step against the exact optimum: the angle between them falls as √δ."""
    advantages = torch.tensor([0.3, -1.0, 2.0, 0.1, -0.4], dtype=torch.float64)
    states, actions = torch.zeros(5, dtype=torch.int64), torch.arange(5)
    angles = []
    for delta in (1e-4, 1e-6, 1e-8):
        best, _ = constrained_optimum(advantages, delta)
        policy = Tabular(1, 5)
        trpo = TRPO(policy, max_kl=delta, damping=1e-12, cg_tolerance=1e-12)
        assert trpo.step(states, actions, advantages).status is LineSearchStatus.ACCEPTED
        changes = policy(states[:1]).probs[0].detach() - 0.2, best - 0.2
        one, other = (change / change.norm() for change in changes)
        angles.append(float((one - other).norm()))
    assert all(8 < a / b < 12 for a, b in pairwise(angles)), angles


@pytest.mark.parametrize(("over_target", "factor"), [(1.6, 2), (1.4, 1), (1 / 1.4, 1), (0.6, 0.5)])
def test_the_penalty_doubles_above_one_and_a_half_times_the_target_and_halves_below(
    over_target, factor, generator
):
    policy = Discrete(generator)
    x, actions, advantages = batch(policy, generator)
    settings: dict[str, Any] = {"objective": "penalty", "penalty": 0.7, "learning_rate": 1e-2}
    kl = PPO(copy.deepcopy(policy), **settings).step(x, actions, advantages).kl
    ppo = PPO(policy, target_kl=kl / over_target, **settings)
    report = ppo.step(x, actions, advantages)
    assert report.kl == kl  # the target enters after the update
    assert ppo.penalty == report.penalty == factor * 0.7


def test_the_penalty_follows_the_kl_of_the_epochs_and_not_what_the_hard_bound_left_of_it(generator):
    policy = Discrete(generator)
    settings: dict[str, Any] = {
        "objective": "penalty",
        "learning_rate": 0.03,
        "target_kl": 1e-3,
        "max_kl": 1e-4,
    }
    ppo = PPO(policy, **settings)
    report = ppo.step(*batch(policy, generator))
    assert report.kl <= 1e-4 < 1e-3 / 1.5
    assert report.step_fraction < 0.3
    assert ppo.penalty == 2.0


@pytest.mark.parametrize(("penalty", "target", "last"), [(6e5, 1e-12, 1e6), (1.5e-6, 1e12, 1e-6)])
def test_the_penalty_does_not_run_away(penalty, target, last, generator):
    policy = Discrete(generator)
    ppo = PPO(policy, objective="penalty", penalty=penalty, target_kl=target, epochs=1)
    for _ in range(3):
        ppo.step(*batch(policy, generator))
    assert ppo.penalty == last


@pytest.mark.parametrize("objective", ["clip", "penalty"])
@pytest.mark.parametrize("learning_rate", [3e-3, 0.3, 1e2, 1e5])
def test_the_measured_kl_is_within_the_hard_bound_whatever_the_learning_rate(
    policy, objective, learning_rate, generator
):
    ppo = PPO(
        policy, objective=objective, learning_rate=learning_rate, max_kl=0.01, epochs=3,
        batch_size=25,
    )  # fmt: skip
    moved = 0
    for _ in range(3):
        x, actions, advantages = batch(policy, generator)
        old, before = frozen(policy, x), flatten(policy.parameters())
        report = ppo.step(x, actions, advantages)
        kl = float(kl_divergence(old, frozen(policy, x)).mean())
        assert kl <= 0.01
        if report.status is StepStatus.TAKEN:
            moved += 1
            assert abs(report.kl - kl) < 1e-12
        else:
            assert torch.equal(flatten(policy.parameters()), before)
    assert moved or learning_rate > 1


@pytest.mark.parametrize("learning_rate", [1e-4, 0.3, 3.0])
def test_the_bound_shortens_the_update_and_does_not_turn_it(learning_rate, generator):
    policy = Discrete(generator)
    x, actions, advantages = batch(policy, generator)
    free, theta = copy.deepcopy(policy), flatten(policy.parameters())
    old = frozen(policy, x)
    settings = {"learning_rate": learning_rate, "epochs": 4}
    PPO(free, **settings).step(x, actions, advantages)
    report = PPO(policy, max_kl=0.01, **settings).step(x, actions, advantages)
    assert report.status is StepStatus.TAKEN
    step, whole = flatten(policy.parameters()) - theta, flatten(free.parameters()) - theta
    assert torch.allclose(step, report.step_fraction * whole, rtol=1e-6, atol=1e-12)
    # No more is given away than one candidate of the search.
    if report.step_fraction < 1:
        assign(list(policy.parameters()), theta + report.step_fraction / 0.8 * whole)
        assert float(kl_divergence(old, frozen(policy, x)).mean()) > 0.01
    assert (report.step_fraction < 1) == (learning_rate > 1e-4)


def test_where_no_part_of_an_update_keeps_the_bound_nothing_moves(generator):
    """Steps of 1e30 in float32: the shortest candidate is still far beyond any bound."""
    policy = Discrete(generator)
    x, actions, advantages = batch(policy, generator)
    policy.float()
    ppo = PPO(policy, objective="penalty", learning_rate=1e30, max_kl=0.01, epochs=1, batch_size=50)
    before = bits(ppo.state_dict())
    report = ppo.step(x.float(), actions, advantages.float())
    assert report.status is StepStatus.REFUSED
    assert report.step_fraction == 0
    assert report.penalty == 2.0  # the KL of the epochs was far above its target
    after = {**ppo.state_dict(), "steps_taken": 0, "penalty": 1.0}
    assert bits(after) == before


def test_every_epoch_sees_every_sample_exactly_once(generator):
    policy = Discrete(generator)
    x, actions, advantages = batch(policy, generator, size=37)
    x[:, 0] = torch.arange(37)
    seen = []
    policy.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, 0].tolist()))
    PPO(policy, epochs=3, batch_size=8).step(x, actions, advantages)
    minibatches = [part for part in seen if len(part) < 37]
    assert [len(part) for part in minibatches] == [8, 8, 8, 8, 5] * 3
    epochs = [list(chain.from_iterable(minibatches[5 * k : 5 * k + 5])) for k in range(3)]
    assert all(sorted(epoch) == list(range(37)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_generator_alone_decides_the_order(generator):
    policy = Discrete(generator)
    x, actions, advantages = batch(policy, generator)
    results = []
    for seed in (1, 1, 2):
        twin = copy.deepcopy(policy)
        shuffle = torch.Generator().manual_seed(seed)
        PPO(twin, batch_size=8, generator=shuffle).step(x, actions, advantages)
        results.append(flatten(twin.parameters()))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_an_entropy_coefficient_alone_leads_to_the_uniform_policy():
    policy = Tabular(2, 4)
    with torch.no_grad():
        policy.logits[:] = torch.tensor([[3.0, 0, 0, 0], [0, -2.0, 1.0, 0]])
    states, actions = torch.tensor([0, 1]), torch.tensor([1, 2])
    ppo = PPO(policy, entropy_coefficient=0.1, epochs=300, optimizer="Rprop", learning_rate=1e-2)
    report = ppo.step(states, actions, torch.zeros(2, dtype=torch.float64))
    assert report.entropy < math.log(4) - 0.1
    assert torch.allclose(policy(states).probs, torch.full((2, 4), 0.25).double(), atol=1e-4)


def test_the_learning_rate_falls_linearly_to_0_over_the_steps_that_count(generator):
    policy = Discrete(generator)
    x, actions, advantages = batch(policy, generator)
    mask = torch.arange(50) < 40
    ppo = PPO(policy, learning_rate_steps=100, **PLAIN)
    rates: list[Any] = []
    for _ in range(4):
        constant = copy.deepcopy(policy)
        rate = max(0.0, 0.1 * (1 - len(rates) * 0.4))
        order = ppo.generator.clone_state()
        report = ppo.step(x, actions, advantages, mask)
        rates.append(report.learning_rate)
        assert math.isclose(rates[-1], rate, abs_tol=1e-15)
        if rate:  # what is reported is what the optimizer took
            settings = {**PLAIN, "learning_rate": rate}
            PPO(constant, generator=order, **settings).step(x, actions, advantages, mask)
        expected = flatten(constant.parameters())
        assert torch.allclose(flatten(policy.parameters()), expected, rtol=1e-12, atol=1e-15)
    assert rates[-1] == 0


@pytest.mark.parametrize("objective", ["clip", "penalty"])
@pytest.mark.parametrize("optimizer", ["Adam", "RMSprop"])
@pytest.mark.parametrize("warm", [False, True], ids=["first update", "later update"])
@pytest.mark.parametrize(
    ("where", "poison"),
    [("advantages", math.nan), ("advantages", math.inf), ("observations", math.nan)],
)
def test_what_is_not_finite_leaves_parameters_and_optimizer_bitwise(
    objective, optimizer, warm, where, poison, generator
):
    # By default torch's distributions raise where a parameter is NaN: among the observations that
    # is before anything moves; after a step it must not be the way that an update ends.
    policy = Discrete(generator, validate=None if where == "advantages" else False)
    x, actions, advantages = batch(policy, generator)
    ppo = PPO(
        policy, objective=objective, optimizer=optimizer, batch_size=8, learning_rate_steps=500
    )
    if warm:
        assert ppo.step(x, actions, advantages).status is StepStatus.TAKEN
    before = bits(ppo.state_dict())
    (x if where == "observations" else advantages)[3] = poison
    report = ppo.step(x, actions, advantages)
    assert report.status is StepStatus.NONFINITE
    assert report.step_fraction == 0
    after = ppo.state_dict()
    assert after["steps_taken"] == 50 * (1 + warm)
    assert bits({**after, "steps_taken": 50 * warm}) == before


def test_an_overflow_on_the_way_leaves_parameters_and_optimizer_bitwise(generator):
    policy = Discrete(generator, validate=False)
    x, actions, advantages = batch(policy, generator)
    policy.float()
    ppo = PPO(policy, learning_rate=1e38, batch_size=8)
    before = bits(ppo.state_dict())
    report = ppo.step(x.float(), actions, advantages.float())
    assert report.status is StepStatus.NONFINITE
    assert bits({**ppo.state_dict(), "steps_taken": 0}) == before


@pytest.mark.parametrize("call", [3, 5, 8])
def test_an_error_in_the_policy_leaves_parameters_and_optimizer_bitwise(call, generator):
    policy = Discrete(generator)
    x, actions, advantages = batch(policy, generator)
    ppo = PPO(policy, batch_size=25, epochs=2, max_kl=1e-6)
    ppo.step(x, actions, advantages)
    before = bits(ppo.state_dict())
    calls = 0

    def fail(module, inputs):
        nonlocal calls
        calls += 1
        if calls == call:  # a minibatch, the last of them, a candidate of the search
            raise KeyboardInterrupt

    policy.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        ppo.step(x, actions, advantages)
    assert bits({**ppo.state_dict(), "steps_taken": 50}) == before


@pytest.mark.parametrize("objective", ["clip", "penalty"])
def test_a_ppo_that_is_saved_and_loaded_goes_on_bitwise_as_one_that_is_not(objective, generator):
    policy = Discrete(generator)
    batches = [batch(policy, generator) for _ in range(4)]
    settings = {"objective": objective, "learning_rate_steps": 250, "batch_size": 16}
    ppo = PPO(policy, **settings)
    for one in batches[:2]:
        ppo.step(*one)
    file = io.BytesIO()
    torch.save(ppo.state_dict(), file)
    shuffle = ppo.generator.clone_state()
    for one in batches[2:]:
        ppo.step(*one)

    other = PPO(Discrete(torch.Generator().manual_seed(9)), generator=shuffle, **settings)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    for one in batches[2:]:
        other.step(*one)
    assert bits(other.state_dict()) == bits(ppo.state_dict())


@pytest.mark.parametrize("critic", ["gauss-newton", "adam"])
def test_so_does_a_built_one_with_its_critic_and_its_normaliser(critic, generator):
    environments = make_environments("test/IdentityBox-v0", 4)
    spaces = environments.single_observation_space, environments.single_action_space
    config = PPOConfig(
        hidden_sizes=(8,), objective="penalty", critic=critic, normalise_rewards=True
    )

    def build(seed):
        return PPOAgent.build(*spaces, config, torch.Generator().manual_seed(seed))

    ppo = build(0)
    collector = RolloutCollector(
        environments, ppo.behaviour(4, explore=True), seed=0, generator=generator
    )
    rollouts = [collector.collect(20) for _ in range(4)]
    for rollout in rollouts[:2]:
        ppo.update(rollout)
    state, shuffle = copy.deepcopy(ppo.state_dict()), ppo.algorithm.generator.get_state()
    for rollout in rollouts[2:]:
        ppo.update(rollout)
    other = build(1)
    other.load_state_dict(state)
    other.algorithm.generator.set_state(shuffle)
    for rollout in rollouts[2:]:
        other.update(rollout)
    assert bits(other.state_dict()) == bits(ppo.state_dict())


@pytest.mark.parametrize("setting", ["clip", "penalty", "target_kl", "max_kl", "learning_rate"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_settings_without_a_meaning_are_refused_by_name(setting, value, generator):
    with pytest.raises(UsageError, match=f"{setting} must be above 0"):
        PPO(Discrete(generator), **{setting: value})
