"""One episode's first step, under Gymnasium's checker, before a run begins."""

from __future__ import annotations

import warnings
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils.passive_env_checker import (
    check_action_space,
    check_observation_space,
    env_reset_passive_checker,
    env_step_passive_checker,
)

from rl_plugins.data.guarded import Guarded
from rl_plugins.data.masks import flat_mask
from rl_plugins.data.mujoco_warnings import quieten_mujoco
from rl_plugins.data.task import Task
from rl_plugins.errors import ExperienceError, UsageError, one_line
from rl_plugins.policies.spaces import ACTION_MASK


@dataclass(frozen=True)
class TaskCheck:
    """What the first step showed.

    Attributes
    ----------
    choices
        Entries of the action mask in the info; 0: there is none.
    step_limit
        Steps after which an episode is cut; None: the task has no such limit.
    """

    choices: int
    step_limit: int | None


def check_task(task: Task) -> TaskCheck:
    """Make one copy, reset it and take one step.

    Parameters
    ----------
    task
        A task that makes its copies.

    Raises
    ------
    UsageError
        Where it cannot be made, or breaks Gymnasium's interface.
    """
    quieten_mujoco()
    made = task.make()
    try:
        return _check(made, task.name)
    except (KeyboardInterrupt, UsageError):
        raise
    except ExperienceError as error:
        raise UsageError(f"{task.name!r}: {error}") from error
    except BaseException as error:  # SystemExit too: a task is any code
        text = one_line(error)
        raise UsageError(
            f"the task {task.name!r} breaks Gymnasium's interface: {type(error).__name__}: {text}"
        ) from error
    finally:
        with suppress(Exception, SystemExit):  # it does not hide what went before
            made.close()


def _check(made: gym.Env[Any, Any], name: str) -> TaskCheck:
    for attribute in ("observation_space", "action_space"):
        if not isinstance(getattr(made, attribute, None), gym.Space):
            raise UsageError(f"the task {name!r} has no {attribute}, a gymnasium.Space")
    with warnings.catch_warnings():
        # Its warnings are advice: infinite bounds, a seed that is not used, other integer types.
        warnings.simplefilter("ignore")
        check_observation_space(made.observation_space)
        check_action_space(made.action_space)
        guarded = Guarded(made)  # what is worse than the checker thinks, a reward of None, is told
        observation, info = env_reset_passive_checker(guarded, seed=0)
        env_step_passive_checker(guarded, _an_action(made, observation, info))
    mask = info.get(ACTION_MASK)
    limit = made.spec.max_episode_steps if made.spec is not None else None
    return TaskCheck(0 if mask is None else len(flat_mask(mask)), limit)


def _an_action(made: gym.Env[Any, Any], observation: Any, info: dict[str, Any]) -> Any:
    """One that the mask allows, where there is one."""
    space = made.action_space
    space.seed(0)
    mask = info.get(ACTION_MASK)
    if mask is None and isinstance(observation, dict):
        mask = observation.get(ACTION_MASK)
    if mask is None or not isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return space.sample()
    allowed = flat_mask(mask).astype(bool)
    if isinstance(space, spaces.Discrete):
        return space.dtype.type(space.start + np.argmax(allowed))
    ends = np.cumsum(space.nvec.flatten())[:-1]
    chosen = [int(np.argmax(part)) for part in np.split(allowed, ends)]
    return np.array(chosen, space.dtype).reshape(space.shape) + space.start
