"""Deterministic evaluation of a policy."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rl_plugins.data.autoreset import Environments
from rl_plugins.data.environments import Backend, make_environments
from rl_plugins.data.task import Task, as_task
from rl_plugins.data.workers import PATIENCE, close
from rl_plugins.policies import Behaviour

# Above usual training seeds, so that no episode was trained on.
EVALUATION_SEED = 1_000_000
STEP_LIMIT = 20_000
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
    cut
        Episodes that had not ended when the step limit was reached: their returns are parts.
    """

    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    cut: int = 0

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def deviation(self) -> float:
        """Standard deviation of the return over the episodes."""
        return float(np.std(self.returns))

    def __str__(self) -> str:
        """Mean and deviation, and what was cut."""
        count = len(self.returns)
        text = f"{self.mean:,.1f} ± {self.deviation:,.1f} over {count} episodes"
        if self.cut:
            text += f" ({self.cut} of them cut after {max(self.lengths):,} steps)"
        return text


def evaluate(
    behave: Callable[[int], Behaviour],
    task: str | Task,
    *,
    episodes: int,
    seed: int,
    backend: Backend | str = Backend.SYNC,
    step_limit: int = STEP_LIMIT,
    patience: float = PATIENCE,
    stop: threading.Event | None = None,
    progress: Callable[[int, int], object] = lambda ended, steps: None,
) -> Evaluation | None:
    """Play whole episodes.

    Every environment plays exactly one episode: to count the first that end would favour short
    ones. An episode that does not end is cut.

    Parameters
    ----------
    behave
        A number of environments -> the agent's behaviour in them.
    task
        Its registered name, or a task. The caller's own vector environment is used, and left in the
        middle of episodes.
    episodes
        Their number.
    seed
        Seed of the run. The environments' seeds are 1,000,000 + 1,000 · seed + index, never those
        of training.
    backend
        See :func:`rl_plugins.data.environments.make_environments`.
    step_limit
        Steps after which an episode is cut.
    patience
        Seconds that a step in another process may take.
    stop
        Ends the evaluation early when it is set; None: nothing does.
    progress
        (episodes that have ended, steps of those that are going on), called now and then.

    Returns
    -------
    Evaluation or None
        None where ``stop`` was set before all episodes had ended.
    """
    task = as_task(task).evaluated
    most = MOST_ENVIRONMENTS if task.vector is None else task.vector.num_envs
    returns: list[float] = []
    lengths: list[int] = []
    cut = 0
    for first in range(0, episodes, most):
        # A vector environment that is there has its own number; what is too many is left out.
        wanted = min(most, episodes - first)
        count = wanted if task.vector is None else most
        start = (EVALUATION_SEED + 1000 * seed + first) % 2**31
        vector = make_environments(task, count, backend=backend, seed=start)
        try:
            played = _play(
                behave(count),
                Environments(vector, patience=patience),
                wanted,
                start,
                step_limit,
                stop or threading.Event(),
                partial(_shifted, progress, first),
            )
        finally:
            if task.vector is None:
                close(vector)
        if played is None:
            return None
        returns += played[0].tolist()
        lengths += played[1].tolist()
        cut += int(played[2].sum())
    return Evaluation(tuple(returns), tuple(lengths), cut)


def _shifted(progress: Callable[[int, int], object], first: int, ended: int, steps: int) -> None:
    progress(first + ended, steps)


@torch.inference_mode()
def _play(
    behaviour: Behaviour,
    environments: Environments,
    wanted: int,
    seed: int,
    step_limit: int,
    stop: threading.Event,
    progress: Callable[[int, int], object],
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]] | None:
    """Returns, lengths, and which episodes were cut, of the first ``wanted`` environments."""
    count = environments.count
    generator = torch.Generator().manual_seed(seed)
    observations = environments.reset(seed)
    returns, lengths = np.zeros(count), np.zeros(count, dtype=np.int64)
    playing = np.arange(count) < wanted
    for steps in range(1, step_limit + 1):
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
        if steps % 256 == 0:
            progress(wanted - int(playing.sum()), steps)
    return returns[:wanted], lengths[:wanted], playing[:wanted]
