"""Linear-quadratic regulators: what DDPG and TD3 learn is known to as many digits as one likes.

x′ = A x + B u, reward −(xᵀQx + uᵀRu). The best policy is u = −K x with the gain of the Riccati
equation, where a discount γ shrinks A and B by √γ. Q(s, a) is a quadratic form and a constant, so
that a linear policy and a quadratic critic can be exactly right. They learn from random states and
actions: K is what follows from transitions alone.
"""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy.linalg import solve_discrete_are
from torch import nn

from rl_plugins import DDPG, TD3, train
from rl_plugins.runs import evaluate
from rl_plugins.runs.directory import load_checkpoint

ONE = ([[1.1]], [[0.8]], [[1.0]], [[0.5]])
TWO = (
    [[1.0, 0.2], [-0.1, 0.9]], [[0.3, 0.1], [0.2, 0.8]], [[1.0, 0.0], [0.0, 0.5]],
    [[0.4, 0.1], [0.1, 0.3]],
)  # fmt: skip

SLOW = ([[0.9]], [[0.5]], [[1.0]], [[0.3]])


def best_gain(system, discount):
    A, B, Q, R = map(np.array, system)
    P = solve_discrete_are(discount**0.5 * A, discount**0.5 * B, Q, R)
    return np.linalg.solve(R + discount * B.T @ P @ B, discount * B.T @ P @ A)


class Quadratic(nn.Module):
    """Every quadratic form of state and action, and a constant; 0 at first."""

    def __init__(self, size):
        super().__init__()
        self.rows, self.columns = torch.triu_indices(size, size)
        self.weight = nn.Parameter(torch.zeros(len(self.rows), dtype=torch.float64))
        self.constant = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x, actions):
        z = torch.cat([x, actions], dim=1)
        return (z[:, self.rows] * z[:, self.columns]) @ self.weight + self.constant


def learnt_gain(algorithm, system, generator, *, noise, ends=0.0, size=128, **settings):
    A, B, Q, R = (torch.tensor(matrix, dtype=torch.float64) for matrix in system)
    states, actions = B.shape
    policy = nn.utils.skip_init(nn.Linear, states, actions, bias=False, dtype=torch.float64)
    nn.init.zeros_(policy.weight)
    critics = [Quadratic(states + actions) for _ in range(algorithm.critic_count)]
    if algorithm is TD3:
        # A linear policy has no bounds. Smoothing adds to Q a constant, and no slope.
        settings["action_limit"] = np.inf
    agent = algorithm(
        policy, *critics, generator=generator, target_rate=0.1,
        actor_learning_rate=0.01, critic_learning_rate=0.03, max_action_change=0.02, **settings,
    )  # fmt: skip

    def normal(columns):
        return torch.randn(size, columns, generator=generator, dtype=torch.float64)

    for _ in range(400):
        x, u = normal(states), normal(actions)
        reward = -(x @ Q * x).sum(dim=1) - (u @ R * u).sum(dim=1)
        following = x @ A.T + u @ B.T + noise * normal(states)
        terminated = torch.rand(size, generator=generator) < ends
        agent.step(x, u, reward, following, terminated)
    return -policy.weight.detach().numpy()


def relative_error(found, wanted):
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


@pytest.mark.parametrize("system", [ONE, TWO], ids=["one dimension", "two dimensions"])
@pytest.mark.parametrize("actor", ["gradient", "natural"])
@pytest.mark.parametrize("algorithm", [DDPG, pytest.param(TD3, marks=pytest.mark.slow)])
def test_the_gain_of_the_riccati_equation_is_learnt(algorithm, actor, system, generator):
    found = learnt_gain(algorithm, system, generator, noise=0.0, actor=actor, discount=0.9)
    assert relative_error(found, best_gain(system, 0.9)) < 0.02
    # Sharp enough to tell one discount from another.
    assert relative_error(found, best_gain(system, 0.7)) > 0.06


@pytest.mark.parametrize("algorithm", [DDPG, TD3])
def test_noise_in_the_dynamics_does_not_bias_it(algorithm, generator):
    found = learnt_gain(algorithm, TWO, generator, noise=0.1, size=512, discount=0.9)
    assert relative_error(found, best_gain(TWO, 0.9)) < 0.05


@pytest.mark.parametrize("algorithm", [DDPG, TD3])
def test_ends_at_random_are_a_discount(algorithm, generator):
    """An episode that terminates with probability p is worth γ (1 − p) of one that goes on."""
    found = learnt_gain(algorithm, TWO, generator, noise=0.0, ends=0.4, size=4096, discount=0.9)
    assert relative_error(found, best_gain(TWO, 0.9 * 0.6)) < 0.1
    assert relative_error(found, best_gain(TWO, 0.9)) > 0.3


class Regulator(gym.Env):
    """One dimension, actions bounded where the best gain does not reach. Time limit: 20 steps."""

    observation_space = spaces.Box(-10, 10, (1,), np.float32)
    action_space = spaces.Box(-4, 3, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.now = self.np_random.uniform(-3, 3, 1), 0
        return self.x.astype(np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        A, B, Q, R = (matrix[0][0] for matrix in SLOW)
        reward = -float(Q * self.x[0] ** 2 + R * action[0] ** 2)
        self.x = np.clip(A * self.x + B * action, -10, 10)
        self.now += 1
        return self.x.astype(np.float32), reward, False, self.now == 20, {}


@pytest.fixture(autouse=True, scope="module")
def _tasks():
    gym.register("test/Regulator-v0", entry_point=Regulator)  # type: ignore[arg-type]


class Riccati:
    memory: torch.Tensor | None = None

    def __init__(self, discount):
        self.gain = best_gain(SLOW, discount)

    def act(self, observations, generator):
        return -observations @ torch.tensor(self.gain.T, dtype=torch.float32)

    def to_environment(self, actions):
        return actions.numpy()

    def forget(self, starts):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ddpg", "td3"])
def test_a_whole_run_comes_close_to_the_best_return(algorithm, tmp_path):
    """From actions of its own, through replay buffer, bounds and time limits; the same episodes
    are played by the gain of the Riccati equation."""
    run = train(
        algorithm, "test/Regulator-v0", run_dir=tmp_path / "run", total_steps=1_700,
        environments=4, rollout_length=10, learning_starts=500, hidden_sizes=(64, 64),
        batch_size=64, discount=0.9, target_rate=0.05, noise_scale=0.2, evaluations=0,
        evaluation_episodes=20, checkpoints=0,
        # A critic that is ahead of the actor: at equal rates the actor saturates first.
        actor_learning_rate=3e-4, critic_learning_rate=3e-3,
    )  # fmt: skip
    known = evaluate(lambda count: Riccati(0.9), "test/Regulator-v0", episodes=20, seed=0)
    assert known is not None
    best = known.mean
    assert load_checkpoint(run.directory)["agent"]["updates"] > 1_200
    # Doing nothing pays 3.3 times the best return; no policy pays much less than that.
    assert run.evaluation is not None
    assert 1.2 * best < run.evaluation.mean < 0.95 * best
