"""A2C is the score-function gradient, ACKTR a Kronecker-factored natural one (theory, 1 and 2)."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from natgrad import Fisher, Kronecker
from natgrad.flat import flatten, gradient
from rl_plugins import A2C, ACKTR, A2CConfig, ACKTRConfig, StepStatus, UsageError
from rl_plugins.agents import A2CAgent
from rl_plugins.data.collector import RolloutCollector
from rl_plugins.data.environments import make_environments
from rl_plugins.policies import mlp

ASCENT: dict[str, Any] = {"optimizer": "SGD", "learning_rate": 0.1, "max_gradient_norm": 1e9}


class Discrete(nn.Module):
    def __init__(self, generator, hidden=(8,), validate=None):
        super().__init__()
        self.network = mlp(3, hidden, 4, output_gain=1.0, generator=generator).double()
        self.validate = validate

    def forward(self, x):
        return Categorical(logits=self.network(x), validate_args=self.validate)


class Gaussian(nn.Module):
    def __init__(self, generator, hidden=(8,)):
        super().__init__()
        self.network = mlp(3, hidden, 2, output_gain=1.0, generator=generator).double()
        self.log_std = nn.Parameter(torch.tensor([-0.3, 0.2], dtype=torch.float64))

    def forward(self, x):
        mean = self.network(x)
        return Independent(Normal(mean, self.log_std.exp().expand_as(mean)), 1)


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


def test_the_step_is_along_the_sum_of_scores_weighted_by_advantages(policy, generator):
    """One backward pass a sample, and no mean of a product: the estimator as it is defined."""
    x, actions, advantages = batch(policy, generator)
    parameters = list(policy.parameters())
    theta = flatten(parameters)
    scores = [gradient(policy(x[i : i + 1]).log_prob(actions[i]).sum(), parameters)
              for i in range(len(x))]  # fmt: skip
    g = (torch.stack(scores) * advantages[:, None]).mean(dim=0)
    report = A2C(policy, **ASCENT).step(x, actions, advantages)
    assert report.status is StepStatus.TAKEN
    assert abs(report.gradient_norm - float(g.norm())) < 1e-12
    assert torch.allclose(flatten(parameters), theta + 0.1 * g, rtol=1e-12, atol=1e-15)


def test_the_score_has_mean_zero_so_that_a_baseline_moves_nothing():
    """Over every action with its probability, E[∇log π · b] = 0: exact on an enumerated batch."""
    policy = Discrete(torch.Generator().manual_seed(0), hidden=())
    with torch.no_grad():  # π = 1/4, 1/4, 1/8, 3/8: eight actions enumerate it exactly
        layer: Any = policy.network[0]
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor([2.0, 2, 1, 3]).double().log())
    actions = torch.tensor([0, 0, 1, 1, 2, 3, 3, 3])
    before = flatten(policy.parameters())
    x = torch.ones(8, 3, dtype=torch.float64)
    report = A2C(policy, **ASCENT).step(x, actions, torch.full((8,), 7.0, dtype=torch.float64))
    assert report.gradient_norm < 1e-14
    assert torch.allclose(flatten(policy.parameters()), before, rtol=1e-14, atol=1e-15)


def test_the_entropy_has_its_weight_in_the_gradient(policy, generator):
    x, actions, advantages = batch(policy, generator)
    parameters = list(policy.parameters())
    theta = flatten(parameters)
    pi = policy(x)
    g = gradient((pi.log_prob(actions) * advantages).mean() + 0.3 * pi.entropy().mean(), parameters)
    A2C(policy, entropy_coefficient=0.3, **ASCENT).step(x, actions, advantages)
    assert torch.allclose(flatten(parameters), theta + 0.1 * g, rtol=1e-12, atol=1e-15)


def test_the_gradient_is_scaled_down_to_its_limit_and_reported_before(policy, generator):
    x, actions, advantages = batch(policy, generator)
    theta = flatten(policy.parameters())
    settings: dict[str, Any] = {**ASCENT, "max_gradient_norm": 1e-3}
    report = A2C(policy, **settings).step(x, actions, advantages)
    assert report.gradient_norm > 0.01
    length = float((flatten(policy.parameters()) - theta).norm())
    assert abs(length - 0.1 * 1e-3) < 1e-3 * length


def test_what_is_reported_is_measured_after_the_step(policy, generator):
    x, actions, advantages = batch(policy, generator)
    old = frozen(policy, x)
    report = A2C(policy, **ASCENT).step(x, actions, advantages)
    new = frozen(policy, x)
    ratio = torch.exp(new.log_prob(actions) - old.log_prob(actions))
    gained = float((ratio * advantages).mean() - advantages.mean())
    assert abs(report.kl - float(kl_divergence(old, new).mean())) < 1e-13
    assert abs(report.improvement - gained) < 1e-13
    assert abs(report.entropy - float(old.entropy().mean())) < 1e-13
    assert report.kl > 0 < report.improvement


def test_the_targets_of_the_critic_carry_no_gradient_and_the_policys_step_does_not_reach_it(
    generator,
):
    environments = make_environments("test/Counter-v0", 4)
    spaces = environments.single_observation_space, environments.single_action_space
    a2c = A2CAgent.build(*spaces, A2CConfig(hidden_sizes=(8,)), generator)
    critic = a2c.actor_critic.critic
    collector = RolloutCollector(
        environments, a2c.behaviour(4, explore=True), seed=0, generator=generator
    )
    learning = a2c.actor_critic.learning_batch(collector.collect(6))
    assert not learning.targets.requires_grad
    assert not learning.advantages.requires_grad
    before = flatten(critic.parameters())
    a2c.algorithm.step(learning.observations, learning.actions, learning.advantages)
    assert torch.equal(flatten(critic.parameters()), before)

    seen = []

    class Watching:
        def fit(self, network, features, targets):
            seen.append(targets)

    critic.regression = Watching()  # type: ignore[assignment]
    # r + γ V(s') with the critic's own graph behind it, as a caller might have left it.
    critic.fit(learning.states, 1.0 + 0.9 * critic(learning.states))
    assert not seen[0].requires_grad


def test_kfac_is_the_exact_natural_gradient_where_the_kronecker_product_is_exact(generator):
    """A linear Gaussian policy: its metric does not depend on the state, F = E[xxᵀ] ⊗ Σ⁻¹."""
    policy = Gaussian(generator, hidden=())
    x, actions, advantages = batch(policy, generator)
    parameters = list(policy.parameters())
    theta = flatten(parameters)
    g = gradient((policy(x).log_prob(actions) * advantages).mean(), parameters)
    F = Fisher(policy(x), parameters).to_dense()
    damping = 1e-9  # EXACT damping is λI; the split over the factors agrees as λ goes to 0
    s = torch.linalg.solve(F, g)
    alpha = min(1.0, math.sqrt(2 * 0.001 / float(s @ F @ s)))
    ACKTR(policy, damping=damping).step(x, actions, advantages)
    assert alpha < 1
    assert torch.allclose(flatten(parameters), theta + alpha * s, rtol=1e-5, atol=1e-8)


def test_the_block_of_log_std_is_exact_for_a_deep_gaussian_policy(generator):
    """Its Fisher matrix is 2I: the step of log σ is g / (2 + λ), whatever the layers hold."""
    policy = Gaussian(generator)
    x, actions, advantages = batch(policy, generator)
    before = policy.log_std.detach().clone()
    log_prob = policy(x).log_prob(actions)
    g = torch.autograd.grad((log_prob * advantages).mean(), policy.log_std)[0]
    ACKTR(policy, damping=0.5, max_kl=1e9, learning_rate=0.01).step(x, actions, advantages)
    assert torch.allclose(policy.log_std, before + 0.01 * g / 2.5, rtol=1e-9)


def test_the_step_is_that_of_natgrads_kronecker_matrix(policy, generator):
    x, actions, advantages = batch(policy, generator)
    parameters = list(policy.parameters())
    theta = flatten(parameters)
    g = gradient((policy(x).log_prob(actions) * advantages).mean(), parameters)
    K = Kronecker(policy, x)
    s = K.solve(g, damping=0.01)
    alpha = min(1.0, math.sqrt(2 * 0.001 / float(s @ (K @ s))))
    report = ACKTR(policy).step(x, actions, advantages)
    assert torch.allclose(flatten(parameters), theta + alpha * s, rtol=1e-9, atol=1e-12)
    assert abs(report.gradient_norm - float(g.norm())) < 1e-12


@pytest.mark.parametrize(("max_kl", "learning_rate"), [(1e-3, 1.0), (1e-5, 1.0), (1e3, 1e-3)])
def test_kfac_steps_are_as_long_as_the_shorter_of_its_two_limits(
    policy, max_kl, learning_rate, generator
):
    x, actions, advantages = batch(policy, generator)
    K, theta = Kronecker(policy, x), flatten(policy.parameters())
    quadratic = K.to_dense()
    g = gradient((policy(x).log_prob(actions) * advantages).mean(), list(policy.parameters()))
    s = K.solve(g, damping=0.01)
    acktr = ACKTR(policy, max_kl=max_kl, learning_rate=learning_rate)
    acktr.step(x, actions, advantages)
    step = flatten(policy.parameters()) - theta
    kl = float(0.5 * step @ quadratic @ step)
    assert kl <= max_kl * (1 + 1e-9)
    if max_kl < 1:
        assert abs(kl - max_kl) < 1e-6 * max_kl
    else:
        assert torch.allclose(step, learning_rate * s, rtol=1e-6, atol=1e-12)


def test_kfac_on_a_masked_batch_is_kfac_on_the_rows_that_count(policy, generator):
    x, actions, advantages = batch(policy, generator)
    mask = torch.rand(50, generator=generator) < 0.5
    twin = copy.deepcopy(policy)
    ACKTR(policy).step(x, actions, advantages, mask)
    ACKTR(twin).step(x[mask], actions[mask], advantages[mask])
    pair = flatten(policy.parameters()), flatten(twin.parameters())
    assert torch.allclose(*pair, rtol=1e-9, atol=1e-12)


def test_kfac_refuses_sequences_before_anything_moves(generator):
    policy = Discrete(generator)
    before = flatten(policy.parameters())
    x = torch.randn(4, 5, 3, generator=generator, dtype=torch.float64)
    actions, advantages = torch.zeros(4, 5, dtype=torch.int64), torch.ones(4, 5).double()
    with pytest.raises(ValueError, match=r"got sequences \(4, 5\).*another optimizer, or npg"):
        ACKTR(policy).step(x, actions, advantages)
    assert torch.equal(flatten(policy.parameters()), before)
    with pytest.raises(ValueError, match="memory learns from sequences"):
        ACKTRConfig(memory_size=8)
    assert A2CConfig(memory_size=8).memory_size == 8


def test_acktr_is_a2c_with_kfac_however_it_is_made(generator):
    policy = Discrete(generator)
    twin = copy.deepcopy(policy)
    x, actions, advantages = batch(policy, generator)
    acktr = ACKTR(policy)
    assert acktr.settings.optimizer == ACKTRConfig().optimizer == "KFAC"
    assert acktr.settings.learning_rate == ACKTRConfig().learning_rate == 1.0
    acktr.step(x, actions, advantages)
    A2C(twin, optimizer="KFAC", learning_rate=1.0).step(x, actions, advantages)
    assert torch.equal(flatten(policy.parameters()), flatten(twin.parameters()))


@pytest.mark.parametrize("optimizer", ["RMSprop", "Adam", "KFAC"])
@pytest.mark.parametrize("warm", [False, True], ids=["first update", "later update"])
@pytest.mark.parametrize(
    ("where", "poison"),
    [("advantages", math.nan), ("advantages", math.inf), ("observations", math.nan)],
)
def test_what_is_not_finite_leaves_parameters_and_optimizer_bitwise(
    optimizer, warm, where, poison, generator
):
    policy = Discrete(generator, validate=None if where == "advantages" else False)
    a2c, twin = (
        A2C(one, optimizer=optimizer, learning_rate=1e-2) for one in (policy, copy.deepcopy(policy))
    )
    clean = batch(policy, generator)
    x, actions, advantages = (value.clone() for value in clean)
    (x if where == "observations" else advantages)[3] = poison
    if warm:
        a2c.step(*clean)
        twin.step(*clean)
    before = flatten(policy.parameters())
    report = a2c.step(x, actions, advantages)
    assert report.status is StepStatus.NONFINITE
    assert report.step_fraction == 0
    assert torch.equal(flatten(policy.parameters()), before)
    # The optimizer's state as well: it goes on as one that never saw the NaN.
    for learner in (a2c, twin):
        assert learner.step(*clean).status is StepStatus.TAKEN
    assert torch.equal(flatten(policy.parameters()), flatten(twin.policy.parameters()))


@pytest.mark.parametrize("optimizer", ["Adam", "KFAC"])
def test_an_error_in_the_policy_after_the_step_leaves_the_parameters_bitwise(optimizer, generator):
    policy = Discrete(generator)
    x, actions, advantages = batch(policy, generator)
    before = flatten(policy.parameters())

    def fail_once_moved(module, inputs):
        if not torch.equal(flatten(module.parameters()), before):
            raise KeyboardInterrupt

    policy.register_forward_pre_hook(fail_once_moved)
    a2c = A2C(policy, optimizer=optimizer)
    with pytest.raises(KeyboardInterrupt):
        a2c.step(x, actions, advantages)
    assert torch.equal(flatten(policy.parameters()), before)
    assert all(not state["state"] for state in a2c.state_dict()["optimizers"])


@pytest.mark.parametrize("optimizer", ["RMSprop", "KFAC"])
def test_an_a2c_that_is_saved_and_loaded_goes_on_bitwise_as_one_that_is_not(optimizer, generator):
    policy = Discrete(generator)
    batches = [batch(policy, generator) for _ in range(4)]
    a2c = A2C(policy, optimizer=optimizer)
    for one in batches[:2]:
        a2c.step(*one)
    state = copy.deepcopy(a2c.state_dict())
    for one in batches[2:]:
        a2c.step(*one)
    other = A2C(Discrete(torch.Generator().manual_seed(9)), optimizer=optimizer)
    other.load_state_dict(state)
    for one in batches[2:]:
        other.step(*one)
    assert torch.equal(flatten(other.policy.parameters()), flatten(policy.parameters()))


@pytest.mark.parametrize("setting", ["learning_rate", "max_kl", "max_gradient_norm"])
def test_settings_without_a_meaning_are_refused_by_name(setting, generator):
    wrong: dict[str, Any] = {setting: 0.0}
    with pytest.raises(UsageError, match=f"{setting} must be above 0"):
        A2C(Discrete(generator), **wrong)
