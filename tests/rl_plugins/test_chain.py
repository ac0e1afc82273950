"""The theory on Markov decision processes of known transition matrix (lines 1 to 3, 9 to 11).

Layered: three steps and over, so that all trajectories can be listed and every expectation is
exact. Chain: a task for the training loop, with exact values to compare its agents with.
"""

import copy
import itertools
import math
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn
from torch.distributions import Categorical

from natgrad import LineSearchStatus
from natgrad.flat import assign, flatten, gradient
from rl_plugins import A2C, TRPO, gae, train
from rl_plugins.critics import AdamRegression, Critic, GaussNewtonRegression
from rl_plugins.parts.surrogate import Surrogate
from rl_plugins.plugin import find_plugin
from rl_plugins.policies import Features, mlp
from rl_plugins.policies.observations import Leaf, LeafKind
from rl_plugins.runs.directory import load_checkpoint
from rl_plugins.runs.settings import resolve

ASCENT: dict[str, Any] = {"optimizer": "SGD", "learning_rate": 1.0, "max_gradient_norm": 1e9}


class Process:
    """Transitions (S, A, S), whose missing mass is termination, rewards (S, A), start (S,), γ."""

    def __init__(self, transitions, rewards, start, discount):
        self.P, self.r = torch.as_tensor(transitions), torch.as_tensor(rewards)
        self.start, self.discount = torch.as_tensor(start), discount

    def values(self, pi):
        """V^π = (I − γ P_π)⁻¹ r_π, differentiable in the probabilities (S, A)."""
        P = torch.einsum("sa,sat->st", pi, self.P)
        identity = torch.eye(len(P), dtype=P.dtype)
        return torch.linalg.solve(identity - self.discount * P, (pi * self.r).sum(dim=1))

    def action_values(self, pi):
        return self.r + self.discount * self.P @ self.values(pi)

    def expected_return(self, pi):
        """J(π)."""
        return self.start @ self.values(pi)

    def visitation(self, pi):
        """ρ_π(s) = Σ_t γ^t Pr(S_t = s)."""
        P = torch.einsum("sa,sat->st", pi, self.P)
        identity = torch.eye(len(P), dtype=P.dtype)
        return torch.linalg.solve(identity - self.discount * P.T, self.start)

    def optimal_action_values(self):
        Q = torch.zeros_like(self.r)
        for _ in range(2000):
            Q = self.r + self.discount * self.P @ Q.max(dim=1).values
        return Q


class Tabular(nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, states):
        return Categorical(logits=self.logits[states])

    @property
    def probabilities(self):
        return self.logits.softmax(dim=1)


@pytest.fixture
def layered(generator):
    """States 0 | 1 2 | 3 4 and the end; two actions; whatever can follow does so at 1/2."""
    P = torch.zeros(5, 2, 5, dtype=torch.float64)
    P[0, :, 1:3] = 0.5
    P[1:3, :, 3:5] = 0.5
    P[0, 1, 1], P[0, 1, 2] = 0.25, 0.75
    rewards = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    start = torch.tensor([1.0, 0, 0, 0, 0], dtype=torch.float64)
    return Process(P, rewards, start, discount=0.9)


@pytest.fixture
def policy(generator):
    return Tabular(torch.randn(5, 2, generator=generator, dtype=torch.float64))


def trajectories(process, pi):
    """All (probability, states, actions) of three steps."""
    found = []
    for choice in itertools.product((0, 1), (1, 2), (0, 1), (3, 4), (0, 1)):
        states, actions = (0, choice[1], choice[3]), (choice[0], choice[2], choice[4])
        probability = math.prod(float(pi[s, a]) for s, a in zip(states, actions, strict=True))
        for t in (0, 1):
            probability *= float(process.P[states[t], actions[t], states[t + 1]])
        found.append((probability, states, actions))
    assert abs(sum(p for p, _, _ in found) - 1) < 1e-12
    return found


def psi(process, pi):
    """The three Ψ_t of a trajectory, each a function of (states, actions) -> (3,)."""
    V, Q = process.values(pi).detach(), process.action_values(pi).detach()
    baseline = torch.tensor([0.5, -1.0, 2.0, 0.0, 1.0], dtype=torch.float64)

    def return_to_go(states, actions):
        rewards = [float(process.r[s, a]) for s, a in zip(states, actions, strict=True)]
        powers = process.discount ** np.arange(3)
        return [float((powers[: 3 - t] * rewards[t:]).sum()) for t in range(3)]

    return {
        "return to go": return_to_go,
        "Q less a baseline": lambda s, a: (Q[list(s), list(a)] - baseline[list(s)]).tolist(),
        "advantage": lambda s, a: (Q[list(s), list(a)] - V[list(s)]).tolist(),
    }


def exact_gradient(process, policy):
    return gradient(process.expected_return(policy.probabilities), [policy.logits])


@pytest.mark.parametrize("name", ["return to go", "Q less a baseline", "advantage"])
def test_all_three_estimators_have_the_exact_gradient_as_their_expectation(layered, policy, name):
    """Σ_τ Pr(τ) Σ_t γ^t ∇log π(a_t|s_t) Ψ_t, taken by A2C over all trajectories at once."""
    pi = policy.probabilities.detach()
    weight_of = psi(layered, pi)[name]
    rows = [
        (s, a, probability * layered.discount**t * weight)
        for probability, states, actions in trajectories(layered, pi)
        for t, (s, a, weight) in enumerate(
            zip(states, actions, weight_of(states, actions), strict=True)
        )
    ]
    states, actions, weights = (np.array(column) for column in zip(*rows, strict=True))
    batch = (torch.from_numpy(column) for column in (states, actions, len(rows) * weights))
    expected, theta = exact_gradient(layered, policy), flatten([policy.logits])
    A2C(policy, **ASCENT).step(*batch)
    assert torch.allclose(flatten([policy.logits]) - theta, expected, rtol=1e-11, atol=1e-14)


def test_their_variance_falls_from_return_to_go_over_a_baseline_to_the_advantage(layered, policy):
    """Q less a baseline with no more to it than the mean of V; and the return less V in between."""
    pi = policy.probabilities.detach()
    exact = exact_gradient(layered, policy)
    V = layered.values(pi).tolist()
    three = psi(layered, pi)

    def return_less_value(states, actions):
        returns = three["return to go"](states, actions)
        return [g - V[s] for g, s in zip(returns, states, strict=True)]

    Q, b = layered.action_values(pi), sum(V) / 5

    def action_value_less_constant(states, actions):
        return [float(Q[s, a]) - b for s, a in zip(states, actions, strict=True)]

    spread = {}
    for weight_of in (
        three["return to go"], action_value_less_constant, return_less_value, three["advantage"]
    ):  # fmt: skip
        total = 0.0
        for probability, states, actions in trajectories(layered, pi):
            estimate = torch.zeros(5, 2, dtype=torch.float64)
            for t, weight in enumerate(weight_of(states, actions)):
                score = -pi[states[t]].clone()
                score[actions[t]] += 1
                estimate[states[t]] += layered.discount**t * weight * score
            total += probability * float((estimate.flatten() - exact).square().sum())
        spread[weight_of] = total
    worst, constant, value, best = spread.values()
    assert worst > constant > best > 0
    assert worst > value > best


def test_the_policy_gradient_theorem_weighs_states_by_their_discounted_visitation(layered, policy):
    """∇J = Σ_s ρ(s) Σ_a ∇π(a|s) Q(s, a), as one step of A2C on every state and action."""
    pi = policy.probabilities.detach()
    states, actions = (index.flatten() for index in torch.meshgrid(
        torch.arange(5), torch.arange(2), indexing="ij"
    ))  # fmt: skip
    rho, Q = layered.visitation(pi), layered.action_values(pi)
    weights = 10 * (rho[:, None] * pi * Q).flatten()
    expected, theta = exact_gradient(layered, policy), flatten([policy.logits])
    A2C(policy, **ASCENT).step(states, actions, weights)
    assert torch.allclose(flatten([policy.logits]) - theta, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("distance", [1e-3, 1.0, 30.0])
def test_the_difference_in_performance_is_the_expected_advantage_over_the_old_policy(
    layered, policy, distance, generator
):
    """J(π) − J(π_old) = Σ_s ρ_π(s) Σ_a π(a|s) A_old(s, a), however far apart they are."""
    old = policy.probabilities.detach()
    A = layered.action_values(old) - layered.values(old)[:, None]
    noise = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    new = (policy.logits.detach() + distance * noise).softmax(dim=1)
    difference = layered.expected_return(new) - layered.expected_return(old)
    lemma = layered.visitation(new) @ (new * A).sum(dim=1)
    assert torch.allclose(lemma, difference, rtol=1e-10, atol=1e-14)
    # And as E_π[Σ_t γ^t A_old(S_t, A_t)] over trajectories of the new policy.
    expected = sum(
        probability * sum(
            layered.discount**t * float(A[s, a])
            for t, (s, a) in enumerate(zip(states, actions, strict=True))
        )
        for probability, states, actions in trajectories(layered, new)
    )  # fmt: skip
    assert abs(expected - float(difference)) < 1e-12


def test_a_second_term_that_is_nowhere_negative_is_an_improvement(layered, policy):
    """Σ_a π(a|s) A_old(s, a) >= 0 in every state: π leans towards what the advantages favour."""
    old = policy.probabilities.detach()
    A = layered.action_values(old) - layered.values(old)[:, None]
    for lean in (0.1, 1.0, 100.0):
        new = (policy.logits.detach() + lean * A).softmax(dim=1)
        assert ((new * A).sum(dim=1) > 0).all()
        assert (layered.values(new) > layered.values(old)).all()


def enumerated_surrogate(process, policy):
    """The Surrogate over every state and action, weighted by ρ_old π_old: L(π) − J(π_old)."""
    old = policy.probabilities.detach()
    A = process.action_values(old) - process.values(old)[:, None]
    states, actions = (index.flatten() for index in torch.meshgrid(
        torch.arange(5), torch.arange(2), indexing="ij"
    ))  # fmt: skip
    weights = 10 * (process.visitation(old)[:, None] * old * A).flatten()
    return Surrogate(policy, states, actions, weights)


def test_the_surrogate_agrees_with_the_return_in_value_and_gradient(layered, policy):
    surrogate = enumerated_surrogate(layered, policy)
    value = surrogate.objective(policy(surrogate.observations))
    assert abs(value.item()) < 1e-14  # J(π_old) itself is left out
    g = gradient(value, [policy.logits])
    assert torch.allclose(g, exact_gradient(layered, policy), rtol=1e-12, atol=1e-15)


def test_and_differs_from_it_to_second_order(layered, policy, generator):
    surrogate = enumerated_surrogate(layered, policy)
    theta = flatten([policy.logits])
    start = layered.expected_return(policy.probabilities).detach()
    direction = torch.randn(10, generator=generator, dtype=torch.float64)
    errors = []
    for length in (1e-2, 1e-3, 1e-4):
        assign([policy.logits], theta + length * direction)
        with torch.no_grad():
            L = start + surrogate.objective(policy(surrogate.observations))
            errors.append(float((layered.expected_return(policy.probabilities) - L).abs()))
    assert all(1.8 < math.log10(a / b) < 2.2 for a, b in pairwise(errors)), errors


def test_action_values_in_place_of_advantages_are_the_same_step_of_trpo(layered, policy):
    """E_old[∇log π · V(s)] = 0, and L loses a constant: direction, length and search stay."""
    old = policy.probabilities.detach()
    Q, V = layered.action_values(old), layered.values(old)[:, None]
    states, actions = (index.flatten() for index in torch.meshgrid(
        torch.arange(5), torch.arange(2), indexing="ij"
    ))  # fmt: skip
    weights = 10 * layered.visitation(old)[:, None] * old
    reached = []
    for psi_of in (Q, Q - V):
        twin = copy.deepcopy(policy)
        trpo = TRPO(twin, max_kl=0.05, cg_tolerance=1e-12)
        report = trpo.step(states, actions, (weights * psi_of).flatten())
        assert report.status is LineSearchStatus.ACCEPTED
        reached.append(flatten([twin.logits]))
    assert not torch.allclose(reached[0], flatten([policy.logits]), rtol=1e-2)
    assert torch.allclose(reached[0], reached[1], rtol=1e-9, atol=1e-12)


def test_more_steps_of_an_advantage_are_less_bias_and_more_variance(layered, policy):
    """A^(k) by a critic that is wrong by c everywhere: its bias is γ^k c, and 0 at the end."""
    pi, c = policy.probabilities.detach(), 0.5
    probabilities, visited, taken = zip(*trajectories(layered, pi), strict=True)
    weights = torch.tensor(probabilities, dtype=torch.float64)
    states, actions = torch.tensor(visited).T, torch.tensor(taken).T
    rewards = layered.r[states, actions]
    values = layered.values(pi)[states] + c
    following = torch.cat([values[1:], torch.full((1, 32), math.nan)])
    ended = torch.zeros(3, 32, dtype=torch.bool)
    ended[-1] = True
    exact = layered.action_values(pi)[0] - layered.values(pi)[0] - c  # Q − V̂ of the first step
    variances = []
    for k in (1, 2, 3):
        estimate = gae(
            rewards[:k], values[:k], following[:k], ended[:k], torch.zeros_like(ended[:k]),
            discount=layered.discount, decay=1.0,
        )[0]  # fmt: skip
        bias, variance = torch.zeros(2).double(), 0.0
        for action in (0, 1):
            chosen = weights * (actions[0] == action)
            bias[action] = chosen @ estimate / chosen.sum() - exact[action]
            variance += float(chosen @ (estimate - exact[action] - bias[action]).square())
        left = layered.discount**k * c if k < 3 else 0.0
        assert torch.allclose(bias, torch.full_like(bias, left), rtol=0, atol=1e-12)
        variances.append(variance)
    assert variances[0] < variances[1] < variances[2]


@pytest.mark.parametrize("decay", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("method", ["gauss-newton", "adam"])
def test_a_critic_fitted_to_lambda_returns_converges_to_the_exact_values(
    method, decay, layered, generator
):
    """Under the uniform policy all 32 trajectories are equally likely: listed, they are exact."""
    layered.P[0, 1, 1:3] = 0.5
    uniform = torch.full((5, 2), 0.5, dtype=torch.float64)
    listed = [(states, actions) for _, states, actions in trajectories(layered, uniform)]
    states, actions = (torch.tensor(part).T for part in zip(*listed, strict=True))
    rewards = layered.r[states, actions].float()
    ended = torch.zeros(3, 32, dtype=torch.bool)
    ended[-1] = True

    network = mlp(5, (), 1, output_gain=1.0, generator=generator)
    regression = (
        GaussNewtonRegression(damping=0.01)
        if method == "gauss-newton"
        else AdamRegression(
            network, epochs=10, batch_size=32, learning_rate=0.02, generator=generator
        )
    )
    features = Features([Leaf((), LeafKind.CATEGORIES, (5,), torch.tensor([0]))], normalise=False)
    critic = Critic(features, network, regression)
    for _ in range(40):
        with torch.no_grad():
            values = critic(states.flatten()).view(3, 32)
        following = torch.cat([values[1:], torch.full((1, 32), math.nan)])
        advantages = gae(
            rewards, values, following, ended, torch.zeros_like(ended),
            discount=layered.discount, decay=decay,
        )  # fmt: skip
        critic.fit(states.flatten(), (advantages + values).flatten())
    exact = layered.values(uniform).float()
    error = (critic(torch.arange(5)) - exact).abs().max()
    assert error < (1e-3 if method == "gauss-newton" else 0.05) * exact.abs().max()


def test_a_critic_whose_targets_are_not_finite_stays_bitwise_and_learns_on(generator):
    """Its running moments as well: one NaN among them would be in every later value."""
    critics = []
    for _ in range(2):
        network = mlp(5, (), 1, output_gain=1.0, generator=torch.Generator().manual_seed(1))
        features = Features([Leaf((), LeafKind.NUMBERS, (5,))], normalise=False)
        critics.append(Critic(features, network, GaussNewtonRegression()))
    x, y = torch.eye(5), torch.arange(5.0)
    for disturbed, critic in enumerate(critics):
        critic.fit(x, y)
        if disturbed:
            before = {name: value.clone() for name, value in critic.state_dict().items()}
            for poison in (math.nan, math.inf):
                critic.fit(x, torch.where(y == 3, poison, y))
            assert all(torch.equal(v, before[k]) for k, v in critic.state_dict().items())
        critic.fit(x, 10 * y)
    assert torch.equal(critics[0](x), critics[1](x))


CHAIN_LENGTH = 5
SLIP = 0.1


def chain_process():
    """Left, where the walk begins, a little at once; at the right end much, and the end of it."""
    P, rewards = np.zeros((CHAIN_LENGTH, 2, CHAIN_LENGTH)), np.zeros((CHAIN_LENGTH, 2))
    for s in range(CHAIN_LENGTH):
        for action in (0, 1):
            for step, chance in ((2 * action - 1, 1 - SLIP), (1 - 2 * action, SLIP)):
                target = s + step
                if target == CHAIN_LENGTH:
                    rewards[s, action] += chance * 1.0
                else:
                    P[s, action, max(target, 0)] += chance
        rewards[s, 0] += 0.02
    return Process(P, rewards, np.eye(CHAIN_LENGTH)[0], discount=0.9)


class Chain(gym.Env):
    """The same as a task. States are numbered from 3; an episode is cut off after 40 steps."""

    observation_space = spaces.Discrete(CHAIN_LENGTH, start=3)
    action_space = spaces.Discrete(2, start=1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state, self.steps = 0, 0
        return np.int64(3), {}

    def step(self, action):
        right = action == 2
        forward = right if self.np_random.random() >= SLIP else not right
        self.state = max(self.state + (1 if forward else -1), 0)
        self.steps += 1
        arrived = self.state == CHAIN_LENGTH
        reward = float(arrived) + (0.0 if right else 0.02)
        self.state = min(self.state, CHAIN_LENGTH - 1)
        return np.int64(3 + self.state), reward, arrived, self.steps == 40, {}


@pytest.fixture(autouse=True, scope="module")
def _chain():
    gym.register("test/Chain-v0", entry_point=Chain)  # type: ignore[arg-type]


TUNED = {
    "npg": {"max_kl": 0.02},
    "trpo": {"max_kl": 0.05},
    "ppo": {"learning_rate": 1e-2, "epochs": 4},
    "a2c": {"learning_rate": 1e-2},
    "acktr": {"max_kl": 0.02},
}


@pytest.mark.parametrize("algorithm", TUNED)
def test_every_algorithm_finds_the_optimal_policy_of_the_chain_and_its_values(algorithm, tmp_path):
    settings: dict[str, Any] = {
        # With 8,000, or A2C at twice the rate, a seed in eight or ten ends at the bonus on the left
        # or 0.03 short, and another rounding is another seed. With these none of twelve did.
        "total_steps": 12_000, "environments": 8, "rollout_length": 32, "hidden_sizes": (16,),
        "discount": 0.9, "evaluations": 0, "evaluation_episodes": 5, **TUNED[algorithm],
    }  # fmt: skip
    run = train(algorithm, "test/Chain-v0", run_dir=tmp_path / "run", **settings)
    plugin_class = find_plugin(algorithm)
    config = resolve(algorithm, plugin_class, "test/Chain-v0", settings).config
    agent: Any = plugin_class.build(
        Chain.observation_space, Chain.action_space, config, torch.Generator()
    )
    agent.load_state_dict(load_checkpoint(run.directory)["agent"])

    process = chain_process()
    states = torch.arange(3, 3 + CHAIN_LENGTH)
    with torch.no_grad():
        pi = agent.policy(states).probs.double()
        values = agent.actor_critic.critic(states).double()
    best = process.optimal_action_values()
    assert torch.equal(pi.argmax(dim=1), best.argmax(dim=1))
    exact, optimal = process.values(pi), best.max(dim=1).values
    assert abs(exact[0] - optimal[0]) < 0.03 * optimal[0]
    # The critic has last been fitted to a few hundred steps, one in ten of which slipped.
    assert ((values - exact).abs() < 0.07 * exact).all()
