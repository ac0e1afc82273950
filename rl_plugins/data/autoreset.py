"""Vector environments of every autoreset mode, behind one kind of step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import optree
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array
from numpy.typing import NDArray
from torch import Tensor

from rl_plugins.errors import ExperienceError

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Step:
    """What one step of N environments brought.

    ``observations`` (N, …) are what to act on next; those of ``starts`` begin an episode.
    ``final`` holds the true last observation of every truncated environment, in their order.
    ``valid`` is False where the step only reset an environment: no action was taken there.
    """

    observations: Any
    rewards: NDArray[Any]
    terminated: Flags
    truncated: Flags
    starts: Flags
    valid: Flags
    final: list[Any]


class Environments:
    """A vector environment whose episodes end and begin alike, whatever its autoreset mode.

    SAME_STEP reports the last observation aside, in ``info["final_obs"]``. NEXT_STEP returns it in
    its place, and spends the next step on the reset. DISABLED is reset here, in the same step.
    A step that both terminates and truncates counts as terminated: nothing to bootstrap.
    """

    def __init__(self, environments: VectorEnv) -> None:
        self.vector = environments
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
        """New episodes in all environments; their first observations."""
        observations, _ = self.vector.reset(seed=seed)
        self._resetting[:] = False
        return checked(tensors(observations), np.zeros(self.count))

    def step(self, actions: Any) -> Step:
        """Raises :class:`ExperienceError` for a NaN or an infinity in observation or reward."""
        following, rewards, terminated, truncated, info = self.vector.step(actions)
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
                following, _ = self.vector.reset(options={"reset_mask": ended})
                observations = checked(tensors(following), rewards)
        return Step(observations, rewards, terminated, truncated, starts, valid, final)

    def _reported(self, last: Any, ended: Flags) -> Any:
        """The last observations of the episodes that ended, (K, …). They come as the task returned
        them, and are put together as the vector environment does with all others."""
        space = self.vector.single_observation_space
        of = np.flatnonzero(ended)
        buffer: Any = create_empty_array(space, len(of))
        observations = tensors(concatenate(space, [last[index] for index in of], buffer))
        return checked(observations, np.zeros(len(of)), of)


def tensors(observations: Any) -> Any:
    """Copies as tensors, in the same structure: float32 for floating point, others as they are.

    A copy: vector environments may hand out a buffer that the next step overwrites.
    """
    if isinstance(observations, np.ndarray):  # by far the most common, and the quickest to test
        return _tensor(observations)
    return optree.tree_map(_tensor, observations)


def checked(observations: Any, rewards: NDArray[Any], of: NDArray[Any] | None = None) -> Any:
    """The observations. Raises :class:`ExperienceError` unless all numbers are finite; ``of`` are
    the numbers of the environments they belong to, where these are not all."""
    leaves = (
        [observations] if isinstance(observations, Tensor) else optree.tree_leaves(observations)
    )
    # A sum is finite only if its terms are: one pass. One that overflows is looked at in detail.
    total = float(rewards.sum()) + sum(
        float(leaf.sum()) for leaf in leaves if leaf.is_floating_point()
    )
    if math.isfinite(total):
        return observations
    sound = np.isfinite(rewards)
    for leaf in leaves:
        finite = torch.isfinite(leaf.reshape(len(rewards), -1)).all(dim=1).numpy()
        sound = sound & finite
    if sound.all():
        return observations
    names = np.arange(len(rewards)) if of is None else of
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
