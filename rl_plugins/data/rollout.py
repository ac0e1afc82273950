"""What a collector hands to an algorithm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rollout:
    """T steps of N environments under one fixed behaviour.

    ``observations`` (T, N, …) in the structure of the observation space and ``actions`` (T, N, …)
    as the policy saw and drew them, ``rewards`` (T, N) as the environment gave them, ``terminated``
    and ``truncated`` (T, N) bool, never both. ``starts`` (T, N) says where an observation begins an
    episode. ``valid`` (T, N) is False for steps that only reset an environment (NEXT_STEP
    autoreset): nothing is to be learnt from them.

    ``next_observations`` (N, …) follow the last step; ``final_observations`` (K, …) are the true
    last observations of the K = truncated.sum() truncated steps, in row-major order.
    ``memories`` (T, N, h) are what a recurrent policy remembered *before* each step, and
    ``next_memory`` and ``final_memories`` the same beside those observations; None for others.
    ``episode_returns`` and ``episode_lengths`` are those of the episodes that ended here.
    """

    observations: Any
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    starts: Tensor
    valid: Tensor
    next_observations: Any
    final_observations: Any
    episode_returns: list[float]
    episode_lengths: list[int]
    memories: Tensor | None = None
    next_memory: Tensor | None = None
    final_memories: Tensor | None = None

    @property
    def steps(self) -> int:
        """Environment steps, all environments together."""
        return int(self.valid.sum())

    def next_values(self, value: Callable[[Any, Tensor | None], Tensor], values: Tensor) -> Tensor:
        """V of the observation that each step led to, (T, N), from ``values`` = V(observations).

        ``value(observations, memory)`` is needed anew only for the last and the truncated steps.
        Terminated steps hold V of the reset, which :func:`rl_plugins.gae` ignores.
        """
        last = value(self.next_observations, self.next_memory).unsqueeze(0)
        following = torch.cat([values[1:], last])
        if bool(self.truncated.any()):
            following[self.truncated] = value(self.final_observations, self.final_memories)
        return following
