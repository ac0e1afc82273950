"""Masks of invalid actions: beside the observation, and never without a choice."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rl_plugins.errors import ExperienceError
from rl_plugins.policies.spaces import ACTION_MASK


class MaskedObservation(gym.Wrapper[Any, Any, Any, Any]):
    """Observations {"observation": …, "action_mask": info["action_mask"]}.

    Everything is allowed where the info has no mask, as in the last step of some tasks.

    Parameters
    ----------
    env
        The task.
    choices
        Entries of its mask.
    """

    def __init__(self, env: gym.Env[Any, Any], choices: int) -> None:
        super().__init__(env)
        self._everything = np.ones(choices, dtype=np.int8)
        self.observation_space = gym.spaces.Dict(
            {
                "observation": env.observation_space,
                ACTION_MASK: gym.spaces.MultiBinary(choices),
            }
        )

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """See :meth:`gymnasium.Env.reset`."""
        observation, info = self.env.reset(**options)
        return self._with_mask(observation, info), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """See :meth:`gymnasium.Env.step`."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._with_mask(observation, info), reward, terminated, truncated, info

    def _with_mask(self, observation: Any, info: dict[str, Any]) -> dict[str, Any]:
        return {
            "observation": observation,
            ACTION_MASK: flat_mask(info.get(ACTION_MASK, self._everything)),
        }


class ChoiceLeft(gym.Wrapper[Any, Any, Any, Any]):
    """Refuses to step where the mask in the last observation leaves no choice.

    A policy has to act there as if everything were allowed. Only where a step follows: a task that
    has ended may forbid everything.

    Parameters
    ----------
    env
        An environment with the entry "action_mask" in its observations.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        counts = getattr(env.action_space, "nvec", np.empty(0, int)).flatten()
        self._starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(int)
        self._mask: Any = None

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """See :meth:`gymnasium.Env.reset`."""
        observation, info = self.env.reset(**options)
        self._mask = observation[ACTION_MASK]
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """See :meth:`gymnasium.Env.step`."""
        if isinstance(self.env.action_space, (spaces.Discrete, spaces.MultiDiscrete)):
            allowed = np.ravel(self._mask) != 0
            if not np.logical_or.reduceat(allowed, self._starts).all():
                raise ExperienceError(
                    "the task's action_mask forbids every action in a state that is not its last; "
                    "end the episode there, or allow one"
                )
        result = self.env.step(action)
        self._mask = result[0][ACTION_MASK]
        return result


def flat_mask(mask: Any) -> NDArray[np.int8]:
    """One number a choice, from an array or a tuple of arrays, one for each choice to be made.

    Parameters
    ----------
    mask
        As the task hands it out.
    """
    parts = mask if isinstance(mask, (tuple, list)) else (mask,)
    return np.concatenate([np.ravel(part) for part in parts]).astype(np.int8)
