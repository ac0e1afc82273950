"""One environment, held to Gymnasium's interface step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from rl_plugins.errors import ExperienceError

# The square of a larger number is infinite in float32: it would spoil every loss that it enters.
LARGEST = float(np.sqrt(np.finfo(np.float32).max))
# Where a vector environment reports the end of an episode; a task's own would stand there instead.
RESERVED = frozenset({"final_obs", "final_info"})
_PLAIN = (float, int, np.floating, np.integer)


class Guarded(gym.Wrapper[Any, Any, Any, Any]):
    """Passes steps on, as copies; a fault is a sentence.

    Copies: a task may hand out one array that it goes on writing to, and a vector environment keeps
    the last observation of an episode across the reset.

    Parameters
    ----------
    env
        The task.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._copied = _copier(env.observation_space, "observation")

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """See :meth:`gymnasium.Env.reset`."""
        result = self.env.reset(**options)
        if not isinstance(result, tuple) or len(result) != 2:
            raise ExperienceError(
                "the task's reset() must return (observation, info), as gymnasium.Env says, got "
                f"{_shown(result)}"
            )
        observation, info = result
        return self._copied(observation), _copied_info(info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """See :meth:`gymnasium.Env.step`."""
        result = self.env.step(action)
        if not isinstance(result, tuple) or len(result) != 5:
            raise ExperienceError(
                "the task's step() must return (observation, reward, terminated, truncated, info), "
                f"as gymnasium.Env says, got {_shown(result)}"
            )
        observation, reward, terminated, truncated, info = result
        if type(reward) is not float and not isinstance(reward, _PLAIN):
            reward = _number(reward)
        if type(terminated) is not bool or type(truncated) is not bool:
            terminated, truncated = _flag(terminated, "terminated"), _flag(truncated, "truncated")
        return self._copied(observation), reward, terminated, truncated, _copied_info(info)


def _copied_info(info: Any) -> dict[str, Any]:
    if not isinstance(info, dict):
        raise ExperienceError(f"the task's info must be a dict, got {_shown(info)}")
    if not info:
        return info
    return {
        key: value.copy() if type(value) is np.ndarray else value
        for key, value in info.items()
        if key not in RESERVED
    }


def _copier(space: gym.Space[Any], name: str) -> Callable[[Any], Any]:
    """Observations of a space -> copies of them in its shapes and dtypes, or an error that names
    what is wrong."""
    if isinstance(space, spaces.Dict):
        parts = {key: _copier(part, f"{name}[{key!r}]") for key, part in space.spaces.items()}

        def mapping(observation: Any) -> Any:
            if not isinstance(observation, dict) or not observation.keys() >= parts.keys():
                raise _wrong(name, f"a dict with the keys {list(parts)}", observation)
            return {key: copied(observation[key]) for key, copied in parts.items()}

        return mapping
    if isinstance(space, spaces.Tuple):
        kinds = [_copier(part, f"{name}[{index}]") for index, part in enumerate(space.spaces)]

        def sequence(observation: Any) -> Any:
            if not isinstance(observation, (tuple, list)) or len(observation) != len(kinds):
                raise _wrong(name, f"a tuple of {len(kinds)}", observation)
            return tuple(copied(part) for copied, part in zip(kinds, observation, strict=True))

        return sequence
    if isinstance(space, spaces.Discrete):

        def category(observation: Any) -> Any:
            if not space.contains(observation) and not space.contains(_unpacked(observation)):
                raise _wrong(name, f"an element of {space}", observation)
            return _unpacked(observation)

        return category
    if isinstance(space, spaces.MultiDiscrete):

        def categories(observation: Any) -> Any:
            array = np.array(observation)
            if not space.contains(array.astype(space.dtype)) or array.shape != space.shape:
                raise _wrong(name, f"an element of {space}", observation)
            return array

        return categories
    shape, dtype = space.shape, space.dtype
    if shape is None or dtype is None:  # Text, Graph and others, which the agent names itself
        return lambda observation: observation

    def array(observation: Any) -> Any:
        given = type(observation) is np.ndarray and observation.dtype == dtype
        if given and observation.shape == shape:  # nearly always
            return observation.copy()
        try:
            found = np.array(observation)
            if found.dtype != dtype:
                with np.errstate(over="ignore"):  # an infinity, which the caller names
                    found = found.astype(dtype)
        except (TypeError, ValueError, OverflowError) as error:
            raise _wrong(name, f"an array {shape} of {dtype}", observation) from error
        if found.shape != shape:
            raise _wrong(name, f"an array of shape {shape}", observation)
        return found

    return array


def _unpacked(observation: Any) -> Any:
    single = isinstance(observation, np.ndarray) and observation.size == 1
    return observation.item() if single else observation


def _number(reward: Any) -> Any:
    array = np.asarray(reward)
    if array.shape != () or array.dtype.kind not in "biuf":
        raise ExperienceError(
            f"the task's reward must be one number, got {_shown(reward)}; several rewards are "
            "weighted into one by a wrapper, such as mo_gymnasium.wrappers.LinearReward"
        )
    return array.item()


def _flag(value: Any, name: str) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise ExperienceError(f"the task's {name} must be True or False, got {_shown(value)}")
    return bool(array.item())


def _wrong(name: str, wanted: str, found: Any) -> ExperienceError:
    return ExperienceError(
        f"the task's {name} must be {wanted}, as its observation_space says, got {_shown(found)}"
    )


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and {value.dtype}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) < 60 else f"a {type(value).__name__}"
