"""Vector environments of every autoreset mode, behind one kind of step."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import optree
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array
from numpy.typing import NDArray
from torch import Tensor

from rl_plugins.data.guarded import LARGEST
from rl_plugins.data.workers import PATIENCE, answer_in_time, fault
from rl_plugins.errors import ExperienceError

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class VectorStep:
    """One step of N environments.

    Attributes
    ----------
    observations
        (N, …), to act on next.
    rewards
        (N,).
    terminated, truncated
        (N,) bool, never both.
    starts
        (N,) bool: the observations that begin an episode.
    valid
        (N,) bool, False where the step only reset an environment: no action was taken there.
    final
        The true last observation of every truncated environment, in their order.
    """

    observations: Any
    rewards: NDArray[Any]
    terminated: Flags
    truncated: Flags
    starts: Flags
    valid: Flags
    final: list[Any]


class Environments:
    """A vector environment whose episodes end and begin alike in every autoreset mode.

    SAME_STEP reports the last observation aside, in ``info["final_obs"]``. NEXT_STEP returns it in
    its place, and spends the next step on the reset. DISABLED is reset here, in the same step.
    A step that both terminates and truncates counts as terminated: nothing to bootstrap.

    Parameters
    ----------
    environments
        Any vector environment of Gymnasium's interface.
    patience
        Seconds that a step or a reset in other processes may take.

    Raises
    ------
    ValueError
        Where its metadata does not name its autoreset mode.
    """

    def __init__(self, environments: VectorEnv, *, patience: float = PATIENCE) -> None:
        self.vector, self._patience = environments, patience
        self.count: int = environments.num_envs
        mode = environments.metadata.get("autoreset_mode")
        if not isinstance(mode, AutoresetMode):
            raise ValueError(
                f"the vector environment's metadata has autoreset_mode {mode!r}; expected one of "
                f"{[str(m) for m in AutoresetMode]}: without it the ends of episodes are a guess"
            )
        self._mode = mode
        self._resetting = np.zeros(self.count, dtype=bool)

    def reset(self, seed: int | None) -> Any:
        """Begin new episodes in all environments.

        Parameters
        ----------
        seed
            Seed of the environments; None: they go on with their own random numbers.

        Returns
        -------
        Any
            The first observations, (N, …) tensors.
        """
        observations, _ = self._answer("reset", seed=seed)
        self._resetting[:] = False
        return checked(tensors(observations), np.zeros(self.count))

    def step(self, actions: Any) -> VectorStep:
        """One step of all environments.

        Parameters
        ----------
        actions
            As the vector environment takes them.

        Raises
        ------
        ExperienceError
            For a NaN or an infinity in an observation or a reward.
        """
        following, given, terminated, truncated, info = self._answer("step", actions)
        # In the precision that they are kept in: a number may overflow there.
        with np.errstate(over="ignore"):
            rewards = np.asarray(given, dtype=np.float32)
        observations = checked(tensors(following), rewards)
        valid = ~self._resetting
        terminated = terminated & valid
        truncated = truncated & ~terminated & valid
        ended = terminated | truncated
        starts = ended
        final: list[Any] = []
        if self._mode is AutoresetMode.NEXT_STEP:
            starts = self._resetting
            self._resetting = ended
            final = [_element(observations, index) for index in np.flatnonzero(truncated)]
        elif ended.any():
            if self._mode is AutoresetMode.SAME_STEP:
                last = self._reported(info["final_obs"], ended)
                final = [_element(last, index) for index in np.flatnonzero(truncated[ended])]
            else:
                final = [_element(observations, index) for index in np.flatnonzero(truncated)]
                following, _ = self._answer("reset", options={"reset_mask": ended})
                observations = checked(tensors(following), rewards)
        return VectorStep(observations, rewards, terminated, truncated, starts, valid, final)

    def _answer(self, call: str, *given: Any, **named: Any) -> Any:
        """The environments' answer within the patience, or their fault in a sentence."""
        try:
            if not isinstance(self.vector, AsyncVectorEnv):
                return getattr(self.vector, call)(*given, **named)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # gymnasium prints a worker's traceback as one
                return answer_in_time(self.vector, call, self._patience, *given, **named)
        except (ExperienceError, KeyboardInterrupt):
            raise
        except BaseException as error:  # SystemExit too: a task is any code
            raise ExperienceError(f"the task failed in its {call}: {fault(error)}") from error

    def _reported(self, last: Any, ended: Flags) -> Any:
        """The last observations of the episodes that ended, (K, …), from those of single tasks."""
        space = self.vector.single_observation_space
        numbers = np.flatnonzero(ended)
        buffer: Any = create_empty_array(space, len(numbers))
        observations = tensors(concatenate(space, [last[index] for index in numbers], buffer))
        return checked(observations, np.zeros(len(numbers)), numbers)


def tensors(observations: Any) -> Any:
    """Copies as tensors, in the same structure: float32 for floating point, others as they are.

    A copy: vector environments may return a buffer that the next step overwrites.

    Parameters
    ----------
    observations
        NumPy arrays (N, …), or mappings and sequences of them.
    """
    if isinstance(observations, np.ndarray):  # by far the most common, and the quickest to test
        return _tensor(observations)
    return optree.tree_map(_tensor, observations)


def checked(observations: Any, rewards: NDArray[Any], numbers: NDArray[Any] | None = None) -> Any:
    """The observations, if all values are finite.

    Parameters
    ----------
    observations
        Tensors (N, …), or mappings and sequences of them.
    rewards
        (N,).
    numbers
        (N,), those of the environments, for the message; None: 0, …, N − 1.

    Raises
    ------
    ExperienceError
        For a NaN or an infinity; names the environments.
    """
    leaves = (
        [observations] if isinstance(observations, Tensor) else optree.tree_leaves(observations)
    )
    # A sum is finite only if its terms are: one pass. One that overflows is checked term by term.
    total = float(rewards.sum(dtype=np.float64)) + sum(
        float(leaf.sum()) for leaf in leaves if leaf.is_floating_point()
    )
    largest = float(np.abs(rewards).max(initial=0.0))
    if math.isfinite(total) and largest <= LARGEST:
        return observations
    if math.isfinite(largest) and largest > LARGEST:
        raise ExperienceError(
            f"a reward of {largest:.3g} is too large: its square, which losses hold, overflows in "
            "float32; scale the rewards with gymnasium.wrappers.TransformReward"
        )
    sound = np.isfinite(rewards)
    for leaf in leaves:
        finite = torch.isfinite(leaf.reshape(len(rewards), -1)).all(dim=1).numpy()
        sound = sound & finite
    if sound.all():
        return observations
    names = np.arange(len(rewards)) if numbers is None else numbers
    raise ExperienceError(
        f"environment {names[~sound].tolist()} returned a NaN or an infinity as "
        "observation or reward; mend the task, or bound what it returns with a Gymnasium wrapper"
    )


def _element(observations: Any, index: int | np.integer[Any]) -> Any:
    return optree.tree_map(lambda leaf: leaf[int(index)], observations)


def _tensor(array: Any) -> Tensor:
    array = np.asarray(array)
    if array.dtype == np.float64 or array.dtype == np.float16:
        return torch.from_numpy(np.array(array, dtype=np.float32))
    if array.dtype in (np.uint16, np.uint32, np.uint64):
        return torch.from_numpy(array.astype(np.int64))
    return torch.from_numpy(np.array(array))
