"""Tiny tasks with known answers."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces


class Counter(gym.Env):
    """Observes [episode, step]; every step pays 1. Episodes of odd number terminate after 3 steps,
    those of even number are cut off after 5 (``truncated``)."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Discrete(2)

    def __init__(self):
        self.episode = -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode += 1
        self.step_in_episode = 0
        return self._observe(), {}

    def step(self, action):
        self.step_in_episode += 1
        odd = self.episode % 2 == 1
        terminated = odd and self.step_in_episode == 3
        truncated = not odd and self.step_in_episode == 5
        return self._observe(), 1.0, terminated, truncated, {}

    def _observe(self):
        return np.array([self.episode, self.step_in_episode], dtype=np.float64)


class Identity(gym.Env):
    """Shows a number; pays for naming it. One-step episodes. Best return: 1 (Discrete), 0 (Box)."""

    def __init__(self, kind="discrete", low=-1.0, high=1.0):
        self.observation_space = spaces.Box(0, 1, (3,), np.float32)
        self.kind = kind
        self.action_space: Any = (
            spaces.Discrete(3, start=5) if kind == "discrete"
            else spaces.Box(low, high, (1,), np.float32)
        )  # fmt: skip

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.number = int(self.np_random.integers(3))
        return np.eye(3, dtype=np.float32)[self.number], {}

    def step(self, action):
        assert self.action_space.contains(action), action
        if self.kind == "discrete":
            reward = float(action - 5 == self.number)
        else:
            low, high = self.action_space.low[0], self.action_space.high[0]
            wanted = low + (high - low) * (0.25 + 0.25 * self.number)
            reward = -float(abs(action[0] - wanted) / (high - low))
        return np.eye(3, dtype=np.float32)[self.number], reward, True, False, {}


class Unbounded(gym.Env):
    """Pays for standing at the number shown; the action has no bounds. Best return: 0."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.number = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.number, {}

    def step(self, action):
        return self.number, -float(abs(action - self.number).sum()), True, False, {}


TASKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "test/Unbounded-v0": (Unbounded, {}),
    "test/Counter-v0": (Counter, {}),
    "test/IdentityDiscrete-v0": (Identity, {"kind": "discrete"}),
    "test/IdentityBox-v0": (Identity, {"kind": "box", "low": 2.0, "high": 10.0}),
}


@pytest.fixture(autouse=True, scope="session")
def _tasks():
    for name, (entry_point, kwargs) in TASKS.items():
        gym.register(name, entry_point=entry_point, kwargs=kwargs)
