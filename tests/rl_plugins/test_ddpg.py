"""DDPG (theory, lines 16 to 18), and what TD3 shares with it: targets, refusals, states."""

import copy
import math

import gymnasium as gym
import numpy as np
import optree
import pytest
import torch
from gymnasium import spaces
from torch import nn
from torch.distributions import Categorical

from natgrad.flat import assign, flatten, gradient
from rl_plugins import DDPG, TD3, DDPGConfig, StepStatus, UsageError
from rl_plugins.agents import DDPGAgent, TD3Agent
from rl_plugins.data import ReplayBuffer, Transitions
from rl_plugins.data.collector import RolloutCollector
from rl_plugins.data.environments import make_environments
from rl_plugins.parts.actor_step import DeterministicGradientSettings, actor_step
from rl_plugins.policies import Sampling, mlp


class Actor(nn.Module):
    def __init__(self, generator, hidden=8):
        super().__init__()
        self.network = mlp(3, (hidden,), 2, output_gain=1.0, generator=generator).double()

    def forward(self, x):
        return torch.tanh(self.network(x))


class Value(nn.Module):
    def __init__(self, generator):
        super().__init__()
        self.network = mlp(5, (8,), 1, output_gain=1.0, generator=generator).double()

    def forward(self, x, actions):
        return self.network(torch.cat([x, actions], dim=1)).squeeze(-1)


def batch(generator, size=32):
    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    terminated = torch.rand(size, generator=generator) < 0.3
    terminated[:2] = torch.tensor([True, False])[:size]
    return normal(size, 3), normal(size, 2).tanh(), normal(size), normal(size, 3), terminated


def make(algorithm, generator, **settings):
    critics = [Value(generator) for _ in range(algorithm.critic_count)]
    own = torch.Generator().manual_seed(7)
    return algorithm(Actor(generator), *critics, generator=own, **settings)


def everything(plugin):
    """All numbers that a step may change."""
    leaves = optree.tree_leaves(copy.deepcopy(plugin.state_dict()))
    return [leaf if isinstance(leaf, torch.Tensor) else torch.tensor(leaf) for leaf in leaves]


def assert_bitwise(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert a.numpy().tobytes() == b.numpy().tobytes()


both = pytest.mark.parametrize("algorithm", [DDPG, TD3])


def test_the_actor_moves_along_finite_differences_of_the_value_of_its_actions(generator):
    policy, critic = Actor(generator), Value(generator)
    x = batch(generator)[0]
    parameters = list(policy.parameters())
    theta, phi = flatten(parameters), flatten(critic.parameters())

    def objective(at):
        assign(parameters, at)
        with torch.no_grad():
            return critic(x, policy(x)).mean()

    h = 1e-5
    steps = h * torch.eye(len(theta), dtype=torch.float64)
    differences = torch.stack([objective(theta + e) - objective(theta - e) for e in steps]) / (
        2 * h
    )
    assign(parameters, theta)
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    report = actor_step(policy, parameters, critic, x, optimizer, DeterministicGradientSettings())
    moved = flatten(parameters) - theta
    assert float((moved - differences).norm() / differences.norm()) < 1e-8
    assert report.value == objective(theta)
    assert torch.equal(flatten(critic.parameters()), phi)
    assert all(p.grad is None for p in (*parameters, *critic.parameters()))


def test_that_is_the_expectation_of_the_chain_rule(generator):
    """E[∂Q/∂a · ∂μ/∂θ], state by state."""
    policy, critic = Actor(generator), Value(generator)
    x = batch(generator, 8)[0]
    parameters = list(policy.parameters())
    theta = flatten(parameters)
    mean = torch.zeros_like(theta)
    for state in x:
        actions = policy(state[None]).detach().requires_grad_()
        (slope,) = torch.autograd.grad(critic(state[None], actions).sum(), actions)
        for dimension in range(2):
            part = gradient(policy(state[None])[0, dimension], parameters)
            mean += slope[0, dimension] * part / len(x)
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    actor_step(policy, parameters, critic, x, optimizer, DeterministicGradientSettings())
    assert torch.allclose(flatten(parameters) - theta, mean, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("actor", "steps"), [("gradient", 200), ("natural", 40)])
def test_the_actor_learns_the_best_action_of_every_state(actor, steps, generator):
    """argmax_a Q(s, a) of a critic with no closed form for it, by brute force over a grid."""
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    centre, width = 0.6 * torch.tanh(x[:, :1]), 1.0 + x[:, 1:2].abs()

    def critic(states, actions):
        distance = actions - centre
        return (1.5 * distance - torch.exp(width * distance) - distance**4).squeeze(-1)

    grid = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    with torch.no_grad():
        best = grid[torch.stack([critic(x, a.expand(5, 1)) for a in grid]).argmax(dim=0)]
    assert best.max() - best.min() > 0.3
    policy = mlp(3, (16,), 1, output_gain=1.0, generator=generator).double()
    parameters = list(policy.parameters())
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    settings = DeterministicGradientSettings(actor=actor, max_action_change=0.05, damping=1e-4)
    for _ in range(steps):
        actor_step(policy, parameters, critic, x, optimizer, settings)
    assert (policy(x).squeeze(-1) - best).abs().max() < 5e-3


class One(nn.Module):
    def __init__(self):
        super().__init__()
        self.unit = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.unit.expand(len(x), 1)


class Marks(One):
    """A value that says what it was asked about."""

    def forward(self, x, actions):  # type: ignore[override]
        return self.unit * (x[:, 0] + 10 * x[:, 1] + 100 * actions[:, 0])


def test_the_target_bootstraps_behind_a_time_limit_and_not_behind_a_termination(generator):
    """From a task to y: odd episodes of Counter terminate at step 3, even ones are cut off at 5."""
    uniform = Sampling(
        lambda s: Categorical(logits=torch.zeros(len(s), 2)), lambda a: a.numpy(), explore=True
    )
    environments = make_environments("test/Counter-v0", 2)
    collector = RolloutCollector(environments, uniform, seed=0, generator=generator)
    buffer = ReplayBuffer(100)
    buffer.add(collector.collect(30))
    drawn = buffer.sample(200, generator)
    ddpg = DDPG(One(), Marks(), discount=0.5)
    y = ddpg.targets(drawn)
    episode, step = drawn.observations.T
    last = (episode % 2 == 1) & (step == 2)
    cut = (episode % 2 == 0) & (step == 4)
    assert last.any()
    assert cut.any()
    assert torch.equal(y, 1 + 0.5 * (episode + 10 * (step + 1) + 100).where(~last, 0.0))


def test_the_target_stops_at_a_termination_and_carries_no_gradient(generator):
    ddpg = make(DDPG, generator, discount=0.9)
    with torch.no_grad():
        for parameter in ddpg.critics.parameters():
            parameter.mul_(1.7)  # so that it matters which of the networks is asked
    x, a, r, following, terminated = batch(generator)
    y = ddpg.targets(Transitions(x, a, r, following, terminated))
    for k in range(len(r)):
        value = 0.0
        if not terminated[k]:
            action = ddpg.target_policy(following[k : k + 1])
            value = 0.9 * float(ddpg.target_critics[0](following[k : k + 1], action))
        assert math.isclose(float(y[k]), float(r[k]) + value, rel_tol=1e-12, abs_tol=1e-14)
    for parameter in (*ddpg.target_policy.parameters(), *ddpg.target_critics.parameters()):
        assert not parameter.requires_grad
        parameter.requires_grad_(True)
    attached = r.clone().requires_grad_()
    y = ddpg.targets(Transitions(x, a, attached, following.requires_grad_(), terminated))
    assert not y.requires_grad


@both
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_what_lies_behind_a_termination_does_not_matter(algorithm, poison, generator):
    x, a, r, following, terminated = batch(generator)
    first, second = (make(algorithm, torch.Generator().manual_seed(1)) for _ in range(2))
    first.step(x, a, r, following, terminated)
    poisoned = following.clone()
    poisoned[terminated] = poison
    report = second.step(x, a, r, poisoned, terminated)
    assert report.status is StepStatus.TAKEN
    assert_bitwise(everything(first), everything(second))


def test_steps_are_those_of_the_pseudocode(generator):
    """The critic first, up to date for the actor; the targets last; two optimizers of their own.

    SGD, since Adam's 1 / (√v + ε) would make steps of the rounding of an entry whose gradient is
    near 0, and no bound would hold over six updates.
    """
    ddpg = make(
        DDPG, generator, discount=0.95, target_rate=0.1, optimizer="SGD",
        actor_learning_rate=3e-2, critic_learning_rate=1e-1,
    )  # fmt: skip
    mu, Q = copy.deepcopy(ddpg.policy), copy.deepcopy(ddpg.critics[0])
    old_mu, old_Q = copy.deepcopy(mu), copy.deepcopy(Q)
    actor = torch.optim.SGD(mu.parameters(), lr=3e-2)
    critic = torch.optim.SGD(Q.parameters(), lr=1e-1)
    for _ in range(6):
        x, a, r, following, terminated = batch(generator)
        with torch.no_grad():
            y = r + 0.95 * old_Q(following, old_mu(following)) * ~terminated
        loss = ((Q(x, a) - y) ** 2).mean()
        critic.zero_grad()
        loss.backward()
        critic.step()
        value = Q(x, mu(x)).mean()
        actor.zero_grad()
        (-value).backward()
        actor.step()
        with torch.no_grad():
            for old, new in ((old_mu, mu), (old_Q, Q)):
                for target, source in zip(old.parameters(), new.parameters(), strict=True):
                    target.copy_(0.9 * target + 0.1 * source)
        report = ddpg.step(x, a, r, following, terminated)
        assert math.isclose(report.critic_loss, loss.item(), rel_tol=1e-9)
        assert math.isclose(report.action_value, value.item(), rel_tol=1e-9)
        assert math.isnan(report.action_change)
    for ours, by_hand in (
        (ddpg.policy, mu), (ddpg.critics[0], Q),
        (ddpg.target_policy, old_mu), (ddpg.target_critics[0], old_Q),
    ):  # fmt: skip
        assert torch.allclose(
            flatten(ours.parameters()), flatten(by_hand.parameters()), rtol=1e-9, atol=1e-12
        )


@both
def test_targets_copy_at_rate_one_and_stay_at_rate_almost_zero(algorithm, generator):
    settings = {} if algorithm is DDPG else {"policy_delay": 1}
    for rate in (1.0, 1e-300):
        plugin = make(algorithm, generator, target_rate=rate, **settings)
        old = flatten([*plugin.target_policy.parameters(), *plugin.target_critics.parameters()])
        plugin.step(*batch(generator))
        sources = flatten([*plugin.policy.parameters(), *plugin.critics.parameters()])
        targets = flatten([*plugin.target_policy.parameters(), *plugin.target_critics.parameters()])
        assert torch.allclose(targets, sources if rate == 1 else old, rtol=0, atol=1e-299)


class Normalised(nn.Module):
    """Statistics that its owner moves, and others that its own forward pass moves."""

    def __init__(self, generator):
        super().__init__()
        self.inner = Actor(generator)
        self.register_buffer("shift", torch.zeros(3, dtype=torch.float64))
        self.norm = nn.BatchNorm1d(3, dtype=torch.float64)

    def forward(self, x):
        return self.inner(self.norm(x - self.shift))


@both
def test_targets_see_through_the_statistics_of_the_networks_that_they_follow(algorithm, generator):
    plugin = make(algorithm, generator)
    plugin = algorithm(Normalised(generator), *plugin.critics)
    plugin.policy.shift += 5
    for _ in range(2):
        plugin.step(*batch(generator))
    for name, buffer in plugin.policy.named_buffers():
        assert torch.equal(dict(plugin.target_policy.named_buffers())[name], buffer), name


@pytest.mark.parametrize("damping", [1.0, 0.01])
def test_the_natural_step_is_that_of_dense_algebra(damping, generator):
    """K is the Hessian of the mean square change of an action, by the Jacobian of every one."""
    policy, critic = Actor(generator, hidden=3), Value(generator)
    x = batch(generator)[0]
    parameters = list(policy.parameters())
    theta = flatten(parameters)
    g = gradient(critic(x, policy(x)).mean(), parameters)
    entries = policy(x).flatten()
    rows = [gradient(entry, parameters, retain_graph=True) for entry in entries]
    J = torch.stack(rows)
    K = 2 * J.T @ J / len(J)
    s = torch.linalg.solve(K + damping * torch.eye(len(g), dtype=torch.float64), g)
    step = (2 * 1e-8 / (s @ K @ s)).sqrt() * s  # ½ stepᵀ K step = 10⁻⁸, the mean square change

    settings = DeterministicGradientSettings(
        actor="natural", max_action_change=1e-4, damping=damping, cg_iterations=100
    )
    report = actor_step(policy, parameters, critic, x, torch.optim.SGD(parameters), settings)
    moved = flatten(parameters) - theta
    # Conjugate gradients stop at a relative residual of 10⁻³.
    whole = moved * (step.norm() / moved.norm())
    assert float((whole - step).norm() / step.norm()) < 0.02
    fraction = float(moved.norm() / step.norm())
    nearest = 0.7 ** round(math.log(fraction) / math.log(0.7))
    assert abs(fraction / nearest - 1) < 0.02
    assert math.isclose(report.change, 1e-4 * nearest, rel_tol=0.02)


@both
@pytest.mark.parametrize("bound", [1e-4, 0.02, 0.5])
def test_a_natural_step_keeps_its_bound_in_action_space_and_climbs(algorithm, bound, generator):
    settings = {} if algorithm is DDPG else {"policy_delay": 1}
    plugin = make(algorithm, generator, actor="natural", max_action_change=bound, **settings)
    climbed = 0
    for _ in range(15):
        transitions = batch(generator)
        x = transitions[0]
        with torch.no_grad():
            before = plugin.policy(x)
        report = plugin.step(*transitions)
        with torch.no_grad():
            after = plugin.policy(x)
            gained = float(plugin.critics[0](x, after).mean()) - report.action_value
        change = float((after - before).square().mean().sqrt())
        assert change <= bound * (1 + 1e-9)
        assert math.isclose(change, report.action_change, rel_tol=1e-6, abs_tol=1e-12)
        if change:
            climbed += 1
            assert gained > 0
    assert climbed >= 5


def test_an_action_that_is_a_parameter_itself_keeps_the_bound_too(generator):
    """A candidate overwrites the old action then, where nobody has made a copy of it."""

    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.action = nn.Parameter(torch.zeros(2, dtype=torch.float64))

        def forward(self, x):
            return self.action.expand(len(x), 2)

    class Cliff(nn.Module):
        """Its slope at 0 asks for more than the bound allows, were that not measured."""

        def __init__(self):
            super().__init__()
            self.slope = nn.Parameter(torch.ones(2, dtype=torch.float64))

        def forward(self, x, actions):
            return actions @ self.slope

    ddpg = DDPG(Constant(), Cliff(), actor="natural", max_action_change=0.1, damping=0.0)
    report = ddpg.step(*batch(generator))
    change = float(ddpg.policy.action.detach().square().mean().sqrt())  # type: ignore[operator]
    assert 0.05 < change <= 0.1 * (1 + 1e-9)
    assert math.isclose(report.action_change, change, rel_tol=1e-9)


@both
@pytest.mark.parametrize("actor", ["gradient", "natural"])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("place", ["observations", "actions", "rewards", "next observations"])
def test_a_batch_with_a_number_that_is_not_finite_leaves_everything_bitwise_as_it_was(
    algorithm, actor, poison, place, generator
):
    """The optimizers' moments and counts, the targets and statistics included; and the next step
    is that of an agent which never saw it."""
    settings = {"actor": actor} if algorithm is DDPG else {"actor": actor, "policy_delay": 1}
    critics = [Value(generator) for _ in range(algorithm.critic_count)]
    policy = Normalised(generator)
    plugin = algorithm(policy, *critics, **settings)
    for _ in range(3):
        assert plugin.step(*batch(generator)).status is StepStatus.TAKEN
    before, twin = everything(plugin), copy.deepcopy(plugin.state_dict())
    poisoned = list(batch(generator))
    poisoned[["observations", "actions", "rewards", "next observations"].index(place)][1] = poison
    assert not poisoned[4][1]
    report = plugin.step(*poisoned)
    assert report.status is StepStatus.NONFINITE
    assert_bitwise(everything(plugin), before)

    untouched = algorithm(
        Normalised(generator), *[Value(generator) for _ in critics],
        generator=copy_of(plugin.generator), **settings,
    )  # fmt: skip
    untouched.load_state_dict(twin)
    sound = batch(generator)
    plugin.step(*sound)
    untouched.step(*sound)
    assert_bitwise(everything(plugin), everything(untouched))


def copy_of(generator):
    copied = torch.Generator()
    copied.set_state(generator.get_state())
    return copied


@both
def test_an_error_in_the_middle_of_a_step_leaves_the_networks_bitwise_as_they_were(
    algorithm, generator
):
    """The critic has moved by then, and a candidate of the actor is being tried."""
    settings = {} if algorithm is DDPG else {"policy_delay": 1}
    plugin = make(algorithm, generator, actor="natural", **settings)
    before, critic = everything(plugin), plugin.critics[0].network[0].weight.clone()
    calls = 0

    def fail(module, inputs):
        nonlocal calls
        calls += 1
        if calls == 2:
            assert not torch.equal(plugin.critics[0].network[0].weight, critic)
            raise KeyboardInterrupt

    plugin.policy.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        plugin.step(*batch(generator))
    assert_bitwise(everything(plugin), before)


@both
@pytest.mark.parametrize("actor", ["gradient", "natural"])
def test_going_on_from_a_state_is_going_on(algorithm, actor, generator):
    """With TD3 in the middle of its delay."""
    plugin = make(algorithm, generator, actor=actor)
    for _ in range(3):
        plugin.step(*batch(generator))
    other = make(algorithm, generator, actor=actor)
    other.load_state_dict(copy.deepcopy(plugin.state_dict()))
    other.generator.set_state(plugin.generator.get_state())
    for _ in range(4):
        transitions = batch(generator)
        assert repr(plugin.step(*transitions)) == repr(other.step(*transitions))
    assert_bitwise(everything(plugin), everything(other))


BOX = spaces.Box(-np.inf, np.inf, (3,), np.float32)
ACTIONS = spaces.Box(np.float32([-2, 0]), np.float32([2, 1]))  # type: ignore[arg-type]


class Drift(gym.Env):
    """A number that grows by the action, which must lie in the task's own bounds."""

    observation_space = BOX
    action_space = ACTIONS

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state, self.now = self.np_random.normal(size=3).astype(np.float32), 0
        return self.state.copy(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.now += 1
        self.state[:2] = 0.9 * self.state[:2] + action
        return self.state.copy(), -float(abs(self.state).sum()), False, self.now == 7, {}


@pytest.fixture(autouse=True, scope="module")
def _drift():
    gym.register("test/Drift-v0", entry_point=Drift)  # type: ignore[arg-type]


AGENTS = {DDPG: DDPGAgent, TD3: TD3Agent}


def built(algorithm, generator, **settings):
    agent = AGENTS[algorithm]
    config = agent.Config(
        **{"hidden_sizes": (8,), "batch_size": 16, "learning_starts": 50, **settings}
    )
    return agent.build(BOX, ACTIONS, config, generator)


def collector_for(plugin, generator, count=2):
    environments = make_environments("test/Drift-v0", count)
    behaviour = plugin.behaviour(count, explore=True)
    return RolloutCollector(environments, behaviour, seed=0, generator=generator)


@both
def test_nothing_is_learnt_before_the_warm_up_is_over(algorithm, generator):
    plugin = built(algorithm, generator)
    collector = collector_for(plugin, generator)
    fixed = ("policy", "critics", "target_policy", "target_critics")
    algorithm = plugin.algorithm
    before = [copy.deepcopy(getattr(algorithm, name).state_dict()) for name in fixed]
    for _ in range(4):
        rollout = collector.collect(6)
        report = plugin.update(rollout)
        assert report.status is StepStatus.WAITING
        assert report.updates == 0
        # Actions of the whole range, not of the network, whose outputs are near 0 at first.
        assert float(rollout.actions.abs().amax()) > 0.7
    assert_bitwise(
        optree.tree_leaves(before),  # type: ignore[arg-type]
        optree.tree_leaves([getattr(algorithm, name).state_dict() for name in fixed]),  # type: ignore[arg-type]
    )
    report = plugin.update(collector.collect(1))
    assert report.status is StepStatus.TAKEN  # 4 · 6 · 2 + 2 steps
    assert report.updates == algorithm.updates == 2
    for name, old in zip(fixed, before, strict=True):
        assert not torch.equal(
            flatten(getattr(algorithm, name).state_dict().values()), flatten(old.values())
        ), name


@both
@pytest.mark.parametrize(("per_step", "wanted"), [(0.0, 0), (0.125, 7), (1.0, 60), (2.0, 120)])
def test_so_many_gradient_steps_are_taken_as_the_steps_are_worth(
    algorithm, per_step, wanted, generator
):
    """A fraction is not lost: what a rollout leaves over is added to the next one's."""
    plugin = built(algorithm, generator, learning_starts=1, updates_per_step=per_step)
    collector = collector_for(plugin, generator)
    reports = [plugin.update(collector.collect(3)) for _ in range(10)]
    assert sum(report.updates for report in reports) == plugin.algorithm.updates == wanted


@both
def test_actions_are_stored_in_the_units_of_the_policy_and_taken_in_those_of_the_task(
    algorithm, generator
):
    """The task asserts its own bounds."""
    plugin = built(algorithm, generator, learning_starts=1, noise_scale=2.0)
    collector = collector_for(plugin, generator)
    plugin.update(collector.collect(1))
    rollout = collector.collect(40)
    assert float(rollout.actions.amin()) == -1
    assert float(rollout.actions.amax()) == 1
    asked = plugin.behaviour(1, explore=False).to_environment(torch.tensor([[-1.0, 1], [0, 0]]))
    assert asked.tolist() == [[-2, 1], [0, 0.5]]


@both
def test_a_run_that_is_saved_and_loaded_goes_on_bitwise(algorithm, generator):
    """Networks, optimizers, replay buffer, and the fraction of a gradient step that is owed."""
    settings = {"buffer_size": 70, "updates_per_step": 0.375}
    plugin = built(algorithm, generator, **settings)
    collector = collector_for(plugin, generator)
    for _ in range(7):
        plugin.update(collector.collect(5))
    assert 0 < plugin.state_dict()["owed"] < 1
    other = built(
        algorithm, torch.Generator().manual_seed(5), buffer_size=70, updates_per_step=0.375
    )
    other.load_state_dict(copy.deepcopy(plugin.state_dict()))
    rollouts = [collector.collect(5) for _ in range(4)]
    other.algorithm.generator.set_state(plugin.algorithm.generator.get_state())
    for rollout in rollouts:
        assert repr(plugin.update(rollout)) == repr(other.update(rollout))
    assert plugin.algorithm.updates > 10
    assert_bitwise(everything(plugin.algorithm), everything(other.algorithm))


@both
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, a, r, n, d: (x, a, r[:, None], n, d), r"rewards and terminated must be \(B,\)"),
        (lambda x, a, r, n, d: (x, a, r, n, d[:, None]), r"rewards and terminated must be \(B,\)"),
        (lambda x, a, r, n, d: (x, a, r, n, d[:1]), r"rewards and terminated must be \(B,\)"),
        (lambda x, a, r, n, d: (x, a[:1], r, n, d), r"rewards and terminated must be \(B,\)"),
        (lambda x, a, r, n, d: (x, a, r, n[:1], d), r"values have shape \(1,\), the rewards \(32,"),
        (
            lambda x, a, r, n, d: (x, a, r, n, d.double()),
            r"must be bool, got torch\.float64",
        ),
        (
            lambda x, a, r, n, d: (x, a, r, n, d.byte()),
            r"must be bool, got torch\.uint8",
        ),
        (lambda x, a, r, n, d: (x[:0], a[:0], r[:0], n[:0], d[:0]), "the batch is empty"),
    ],
)
def test_shapes_and_types_that_would_be_misread_are_refused(algorithm, spoil, message, generator):
    plugin = make(algorithm, generator)
    before = everything(plugin)
    with pytest.raises(ValueError, match=message):
        plugin.step(*spoil(*batch(generator)))
    assert_bitwise(everything(plugin), before)


@both
def test_a_critic_that_keeps_its_last_dimension_is_refused(algorithm, generator):
    """(B, 1) − (B,) would be (B, B), and nobody would notice but by the returns."""

    class Column(Value):
        def forward(self, x, actions):
            return super().forward(x, actions).unsqueeze(-1)

    critics = [Column(generator) for _ in range(algorithm.critic_count)]
    plugin = algorithm(Actor(generator), *critics)
    with pytest.raises(ValueError, match=r"shape \(32, 1\), the rewards \(32,\).*squeeze\(-1\)"):
        plugin.step(*batch(generator))


@both
def test_neither_the_layout_nor_the_gradients_of_a_batch_matter(algorithm, generator):
    # SGD: the layouts' roundings differ, which Adam would divide by √v + ε.
    first, second = (
        make(algorithm, torch.Generator().manual_seed(1), optimizer="SGD") for _ in range(2)
    )
    transitions = batch(generator)
    first.step(*transitions)
    x, a, r, following, terminated = (leaf.clone() for leaf in transitions)
    strided = torch.stack([r, torch.zeros_like(r)], dim=1)[:, 0].requires_grad_()
    second.step(
        x.T.contiguous().T.requires_grad_(), a.T.contiguous().T.requires_grad_(), strided,
        following.T.contiguous().T, terminated,
    )  # fmt: skip
    for ours, theirs in zip(everything(first), everything(second), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    assert all(p.grad is None for p in (*second.policy.parameters(), *second.critics.parameters()))


@both
def test_one_transition_is_a_batch_and_single_precision_rewards_do_not_change_the_networks_type(
    algorithm, generator
):
    plugin = make(algorithm, generator)
    x, a, r, following, terminated = batch(generator, 1)
    for _ in range(2):
        report = plugin.step(x, a, r.float(), following, terminated)
    assert report.status is StepStatus.TAKEN
    assert math.isfinite(report.action_value)
    for parameter in (*plugin.policy.parameters(), *plugin.target_critics.parameters()):
        assert parameter.dtype == torch.float64
        assert bool(torch.isfinite(parameter).all())


@both
@pytest.mark.parametrize("actor", ["gradient", "natural"])
def test_frozen_parameters_stay(algorithm, actor, generator):
    plugin = make(algorithm, generator)
    frozen = [plugin.policy.network[0].weight, plugin.critics[0].network[2].weight]
    for parameter in frozen:
        parameter.requires_grad_(False)
    plugin = algorithm(plugin.policy, *plugin.critics, actor=actor)
    before = [parameter.clone() for parameter in frozen]
    moving = plugin.policy.network[2].weight.clone()
    for _ in range(2):
        assert plugin.step(*batch(generator)).status is StepStatus.TAKEN
    assert all(map(torch.equal, frozen, before))
    assert torch.equal(plugin.target_policy.network[0].weight, before[0])
    assert not torch.equal(plugin.policy.network[2].weight, moving)


@both
@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-np.inf, np.inf, (2,), np.float32),
        spaces.Box(np.float32([0, 0]), np.float32([1, np.inf])),  # type: ignore[arg-type]
        spaces.Discrete(3),
        spaces.Box(0, 255, (2,), np.uint8),
        spaces.Tuple([ACTIONS, ACTIONS]),
    ],
    ids=["unbounded", "half bounded", "discrete", "bytes", "tuple"],
)
def test_actions_that_a_deterministic_policy_cannot_reach_are_a_usage_error(
    algorithm, space, generator
):
    agent = AGENTS[algorithm]
    with pytest.raises(UsageError):
        agent.build(BOX, space, agent.Config(), generator)


@both
@pytest.mark.parametrize(
    "space",
    [
        spaces.Dict({"v": BOX, "code": spaces.Discrete(3, start=1)}),
        spaces.Tuple([spaces.Box(0, 255, (12, 12, 3), np.uint8), spaces.Tuple([BOX])]),
        spaces.Box(0, 255, (12, 12), np.uint8),
    ],
    ids=["dict", "image in a tuple", "image alone"],
)
def test_structured_observations_reach_actor_and_critic(algorithm, space, generator):
    """Both answer to every component."""
    agent = AGENTS[algorithm]
    config = agent.Config(hidden_sizes=(16,))
    plugin = agent.build(space, ACTIONS, config, generator).algorithm
    space.seed(3)
    samples = [space.sample() for _ in range(8)]
    observations = optree.tree_map(lambda *leaves: torch.from_numpy(np.stack(leaves)), *samples)
    actions = 2 * torch.rand(8, 2, generator=generator) - 1
    rewards, never = torch.zeros(8), torch.zeros(8, dtype=torch.bool)
    report = plugin.step(observations, actions, rewards, observations, never)
    assert report.status is StepStatus.TAKEN
    leaves, structure = optree.tree_flatten(observations)
    for k in range(len(leaves)):
        others = [leaf.flip(0) if i == k else leaf for i, leaf in enumerate(leaves)]
        changed = optree.tree_unflatten(structure, others)
        with torch.no_grad():
            assert not torch.equal(plugin.policy(changed), plugin.policy(observations))
            before = plugin.critics[0](observations, actions)
            assert not torch.equal(plugin.critics[0](changed, actions), before)


@both
def test_a_step_is_no_agent_and_counts_its_critics(algorithm, generator):
    plugin = make(algorithm, generator)
    assert not any(hasattr(plugin, name) for name in ("build", "behaviour", "update"))
    with pytest.raises(TypeError, match=f"takes {algorithm.critic_count} critics.*got 3"):
        algorithm(Actor(generator), *[Value(generator) for _ in range(3)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"discount": 1.01}, "discount must lie in"),
        ({"target_rate": 0.0}, "target_rate must be above 0"),
        ({"target_rate": 1.5}, "target_rate must lie in"),
        ({"actor": "newton"}, "actor must be one of"),
        ({"critic_learning_rate": 0.0}, "critic_learning_rate must be above 0"),
        ({"max_action_change": math.nan}, "max_action_change must be above 0"),
        ({"damping": -1.0}, "damping must be at least 0"),
        ({"cg_iterations": 0}, "cg_iterations must be at least 1"),
        ({"optimizer": "Adamm"}, "unknown optimizer 'Adamm'"),
        ({"buffer_size": 10}, "unknown setting 'buffer_size'"),
    ],
)
def test_settings_out_of_range_are_named(settings, message, generator):
    with pytest.raises(UsageError, match=message):
        make(DDPG, generator, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"buffer_size": 100}, r"buffer_size \(100\) must hold learning_starts \(10000\)"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"hidden_sizes": (8, 0)}, "hidden_sizes must be at least 1"),
        ({"noise": "pink"}, "noise must be one of"),
        ({"noise_scale": -0.1}, "noise_scale must be at least 0"),
        ({"updates_per_step": math.inf}, "updates_per_step must be at least 0"),
    ],
)
def test_so_are_those_of_the_buffer_and_the_exploration(settings, message):
    with pytest.raises(ValueError, match=message):
        DDPGConfig(**settings)
