"""Deterministic evaluation of a policy."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rl_plugins.data import make_environments
from rl_plugins.policies import Policy, to_environment

# Beyond any training seed that a person types, so that no episode was trained on.
EVALUATION_SEED = 1_000_000
MAX_EPISODE_STEPS = 100_000
MOST_ENVIRONMENTS = 32


@dataclass(frozen=True)
class Evaluation:
    """Undiscounted returns and lengths of whole episodes, in the task's own reward."""

    returns: tuple[float, ...]
    lengths: tuple[int, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.returns))

    @property
    def deviation(self) -> float:
        """Standard deviation over the episodes."""
        return float(np.std(self.returns))


def evaluate(
    policy: Policy,
    task: str,
    *,
    episodes: int,
    seed: int,
    stop: threading.Event | None = None,
) -> Evaluation | None:
    """``episodes`` episodes with the mode of the policy's distribution.

    Every environment plays exactly one episode: counting whichever episodes end first would favour
    short ones. An episode longer than 100,000 steps is cut there. The environments' seeds are
    those of evaluations (1,000,000 + 1,000 · seed + index), never those of training. None where
    ``stop`` was set before all episodes had ended.
    """
    returns: list[float] = []
    lengths: list[int] = []
    for first in range(0, episodes, MOST_ENVIRONMENTS):
        count = min(MOST_ENVIRONMENTS, episodes - first)
        start = EVALUATION_SEED + 1000 * seed + first
        played = _play(policy, task, count, start, stop or threading.Event())
        if played is None:
            return None
        returns += played[0].tolist()
        lengths += played[1].tolist()
    return Evaluation(tuple(returns), tuple(lengths))


@torch.no_grad()
def _play(
    policy: Policy, task: str, count: int, seed: int, stop: threading.Event
) -> tuple[NDArray[Any], NDArray[Any]] | None:
    environments = make_environments(task, count)
    try:
        act = to_environment(environments.single_action_space)
        observations, _ = environments.reset(seed=seed)
        returns, lengths = np.zeros(count), np.zeros(count, dtype=np.int64)
        playing = np.ones(count, dtype=bool)
        for _ in range(MAX_EPISODE_STEPS):
            distribution = policy(torch.from_numpy(np.asarray(observations, dtype=np.float32)))
            observations, rewards, terminated, truncated, _ = environments.step(
                act(distribution.mode)
            )
            returns[playing] += rewards[playing]
            lengths[playing] += 1
            playing &= ~(terminated | truncated)
            if not playing.any():
                break
            if stop.is_set():
                return None
        return returns, lengths
    finally:
        environments.close()
