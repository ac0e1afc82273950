"""Vector environments from a task, by Gymnasium or envpool."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import warnings
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any

import gymnasium as gym
from gymnasium.vector import (
    AsyncVectorEnv,
    AutoresetMode,
    SyncVectorEnv,
    VectorEnv,
    VectorWrapper,
)

from rl_plugins.data.guarded import Guarded
from rl_plugins.data.masks import ChoiceLeft, MaskedObservation
from rl_plugins.data.task import Task, as_task
from rl_plugins.data.task_check import TaskCheck, check_task
from rl_plugins.data.workers import fault
from rl_plugins.errors import ExperienceError, UsageError
from rl_plugins.policies.spaces import ACTION_MASK


class Backend(Enum):
    """The software that steps the copies of a task."""

    SYNC = "Gymnasium, in this process: fastest for cheap tasks"
    ASYNC = "Gymnasium, a process each: for tasks that take milliseconds a step"
    ENVPOOL = "envpool's C++ threads, where it is installed and has the task"


def make_environments(
    task: str | Task,
    count: int,
    *,
    backend: Backend | str = Backend.SYNC,
    seed: int = 0,
    found: TaskCheck | None = None,
) -> VectorEnv:
    """Copies of a task, with SAME_STEP autoreset where there is a choice: no step goes to resets.

    A task that returns ``info["action_mask"]`` gets a Dict observation with that entry, so that the
    mask travels with the observation.

    Parameters
    ----------
    task
        Its registered name, or a :class:`Task`. Copies that are there already are returned as they
        are.
    count
        Number of copies.
    backend
        Steps them, by itself or by its name in lower case. ASYNC for tasks that take milliseconds
        a step.
    seed
        Used by envpool; Gymnasium's tasks are seeded at the first reset.
    found
        The result of :func:`check_task`; None: the task is checked here.

    Raises
    ------
    UsageError
        For an unknown task, for one whose packages are missing, and for one that breaks
        Gymnasium's interface in its first step.
    """
    task = as_task(task)
    if task.vector is not None:
        return task.vector
    if isinstance(backend, str):
        backend = Backend[backend.upper()]
    if count < 1:
        raise UsageError(f"environments must be at least 1, got {count}")
    if backend is Backend.ENVPOOL:
        return _envpool(task, count, seed)
    make = partial(_make, task, masked=(found or check_task(task)).choices)
    if backend is Backend.ASYNC:
        # Not shared memory: it cannot hold spaces of every kind.
        try:
            return AsyncVectorEnv(
                [partial(_make_in_worker, make)] * count,
                shared_memory=False,
                autoreset_mode=AutoresetMode.SAME_STEP,
            )
        except (EOFError, ConnectionError) as error:
            raise ExperienceError(
                "a worker process died while it made the task: out of memory, killed, or ended by "
                "the task"
            ) from error
    return SyncVectorEnv([make] * count, autoreset_mode=AutoresetMode.SAME_STEP)


def make_one(task: Task, *, found: TaskCheck | None = None, **options: Any) -> gym.Env[Any, Any]:
    """One copy, with the mask in its observations where the task hands one out.

    Parameters
    ----------
    task
        A task that makes its copies.
    found
        The result of :func:`check_task`; None: the task is checked here.
    **options
        Further arguments of its constructor, such as ``render_mode``.

    Raises
    ------
    UsageError
        As :func:`make_environments` does.
    """
    return _make(task, masked=(found or check_task(task)).choices, **options)


class SeededWhenMade(VectorWrapper):
    """envpool takes a seed when it is made, and warns of any later one: none is passed on."""

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """See :meth:`gymnasium.vector.VectorEnv.reset`; the seed is not used."""
        return self.env.reset(options=options)


def _make(task: Task, masked: int, **options: Any) -> gym.Env[Any, Any]:
    environment: gym.Env[Any, Any] = Guarded(task.make(**options))
    if masked:
        environment = MaskedObservation(environment, masked)
    space = environment.observation_space
    has_mask = isinstance(space, gym.spaces.Dict) and ACTION_MASK in space.spaces
    return ChoiceLeft(environment) if has_mask else environment


def _make_in_worker(make: Callable[[], gym.Env[Any, Any]]) -> gym.Env[Any, Any]:
    # A Ctrl-C and the end of a terminal reach every process; the parent ends its workers when it is
    # done. Gymnasium makes one environment in the parent too, for its spaces.
    if multiprocessing.parent_process() is not None:
        for name in ("SIGINT", "SIGHUP"):
            if (number := getattr(signal, name, None)) is not None:  # Windows has no SIGHUP
                signal.signal(number, signal.SIG_IGN)
        return _Told(make())
    return make()


class _Told(gym.Wrapper[Any, Any, Any, Any]):
    """In a worker: an error that cannot be pickled is raised as one that can.

    Gymnasium sends errors through a queue, and would wait for one that never arrives.
    """

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        try:
            return self.env.reset(**options)
        except Exception as error:
            raise _picklable(error) from None

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        try:
            return self.env.step(action)
        except Exception as error:
            raise _picklable(error) from None


def _picklable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return ExperienceError(fault(error))
    return error


def _envpool(wanted: Task, count: int, seed: int) -> VectorEnv:
    task = wanted.name
    if wanted != Task(task):
        raise UsageError(
            "envpool makes its tasks by name alone; env_kwargs, wrappers, frame_stack and own "
            "environments need the backend sync or async"
        )
    try:
        import envpool
    except ImportError as error:
        raise UsageError("envpool is not installed: pip install envpool") from error
    if task not in envpool.list_all_envs():
        raise UsageError(f"envpool has no task {task!r}; use backend sync or async")
    with warnings.catch_warnings():
        # envpool gives bounds in float64. It makes its spaces when they are first accessed.
        warnings.filterwarnings("ignore", message=".*precision lowered by casting")
        environments: Any = envpool.make_gymnasium(task, num_envs=count, seed=seed % 2**31)
        _ = environments.observation_space, environments.action_space
    return SeededWhenMade(environments)
