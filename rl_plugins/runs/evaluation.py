"""Deterministic evaluation of a policy."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from rl_plugins.data.autoreset import Environments
from rl_plugins.data.environments import Backend, make_environments
from rl_plugins.policies import Behaviour

# Above usual training seeds, so that no episode was trained on.
EVALUATION_SEED = 1_000_000
MAX_EPISODE_STEPS = 100_000
MOST_ENVIRONMENTS = 32


@dataclass(frozen=True)
class Evaluation:
    """Whole episodes of a policy.

    Attributes
    ----------
    returns
        Undiscounted, in the task's own reward.
    lengths
        Steps of each.
    """

    returns: tuple[float, ...]
    lengths: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def deviation(self) -> float:
        """Standard deviation of the return over the episodes."""
        return float(np.std(self.returns))


def evaluate(
    behave: Callable[[int], Behaviour],
    task: str,
    *,
    episodes: int,
    seed: int,
    backend: Backend | str = Backend.SYNC,
    stop: threading.Event | None = None,
) -> Evaluation | None:
    """Play whole episodes.

    Every environment plays exactly one episode: to count the first that end would favour short
    ones. An episode longer than 100,000 steps is cut there.

    Parameters
    ----------
    behave
        A number of environments -> the agent's behaviour in them.
    task
        Its registered name.
    episodes
        Their number.
    seed
        Seed of the run. The environments' seeds are 1,000,000 + 1,000 · seed + index, never those
        of training.
    backend
        See :func:`rl_plugins.data.environments.make_environments`.
    stop
        Ends the evaluation early when it is set; None: nothing does.

    Returns
    -------
    Evaluation or None
        None where ``stop`` was set before all episodes had ended.
    """
    returns: list[float] = []
    lengths: list[int] = []
    for first in range(0, episodes, MOST_ENVIRONMENTS):
        count = min(MOST_ENVIRONMENTS, episodes - first)
        start = (EVALUATION_SEED + 1000 * seed + first) % 2**31
        environments = make_environments(task, count, backend=backend, seed=start)
        try:
            played = _play(behave(count), environments, start, stop or threading.Event())
        finally:
            environments.close()
        if played is None:
            return None
        returns += played[0].tolist()
        lengths += played[1].tolist()
    return Evaluation(tuple(returns), tuple(lengths))


@torch.inference_mode()
def _play(
    behaviour: Behaviour, vector: VectorEnv, seed: int, stop: threading.Event
) -> tuple[NDArray[Any], NDArray[Any]] | None:
    environments = Environments(vector)
    count = environments.count
    generator = torch.Generator().manual_seed(seed)
    observations = environments.reset(seed)
    returns, lengths = np.zeros(count), np.zeros(count, dtype=np.int64)
    playing = np.ones(count, dtype=bool)
    for _ in range(MAX_EPISODE_STEPS):
        actions = behaviour.act(observations, generator)
        step = environments.step(behaviour.to_environment(actions))
        observations = step.observations
        returns[playing] += step.rewards[playing]
        lengths[playing] += 1
        playing &= ~(step.terminated | step.truncated)
        if not playing.any():
            break
        if stop.is_set():
            return None
        if step.starts.any():
            behaviour.forget(torch.from_numpy(step.starts))
    return returns, lengths
