"""Rollouts of fixed length from a vector of environments."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from torch import Tensor

from rl_plugins.errors import ExperienceError
from rl_plugins.policies import Policy, sample, to_environment


@dataclass(frozen=True)
class Rollout:
    """T steps of N environments under one fixed policy.

    ``observations`` (T, N, *shape) and ``actions`` (T, N, ...) as the policy saw and drew them,
    ``rewards`` (T, N) as the environment gave them, ``terminated`` and ``truncated`` (T, N) bool.
    ``next_observations`` (N, *shape) follow the last step; ``final_observations`` (K, *shape) are
    the true last observations of the K = truncated.sum() truncated steps, in row-major order.
    ``episode_returns`` and ``episode_lengths`` are those of the episodes that ended here.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    next_observations: Tensor
    final_observations: Tensor
    episode_returns: list[float]
    episode_lengths: list[int]

    def next_values(self, value: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
        """V of the observation that each step led to, (T, N), from ``values`` = V(observations).

        Only the last and the truncated steps need V anew. Terminated steps hold V of the reset,
        which :func:`rl_plugins.gae` ignores.
        """
        following = torch.cat([values[1:], value(self.next_observations).unsqueeze(0)])
        if len(self.final_observations):
            following[self.truncated] = value(self.final_observations)
        return following


class RolloutCollector:
    """Steps environments with a policy; episodes run on from one rollout to the next."""

    def __init__(self, environments: VectorEnv, *, seed: int, generator: torch.Generator) -> None:
        mode = environments.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise ValueError(
                f"expected a vector environment with AutoresetMode.SAME_STEP, got {mode}; "
                "pass autoreset_mode=AutoresetMode.SAME_STEP where it is made"
            )
        self._environments = environments
        self._generator = generator
        self._to_environment = to_environment(environments.single_action_space)
        observations, _ = environments.reset(seed=seed)
        self._observations = _tensor(observations)
        self._returns = np.zeros(environments.num_envs)
        self._lengths = np.zeros(environments.num_envs, dtype=np.int64)

    def collect(self, policy: Policy, steps: int) -> Rollout:
        """``steps`` steps of every environment, actions drawn from ``policy(observations)``.

        Raises :class:`ExperienceError` where an observation or a reward is NaN or infinite.
        """
        count = self._environments.num_envs
        observations = torch.empty((steps, *self._observations.shape))
        rewards = np.empty((steps, count), dtype=np.float32)
        terminated = np.empty((steps, count), dtype=bool)
        truncated = np.empty((steps, count), dtype=bool)
        actions: list[Tensor] = []
        finals: list[Tensor] = []
        episode_returns: list[float] = []
        episode_lengths: list[int] = []
        for t in range(steps):
            observations[t] = self._observations
            # Cheaper than no_grad for small networks; what leaves it is copied into plain tensors.
            with torch.inference_mode():
                action = sample(policy(self._observations), self._generator)
            actions.append(action)
            following, reward, terminated[t], truncated[t], info = self._environments.step(
                self._to_environment(action)
            )
            self._observations = _tensor(following)
            _check(self._observations, reward)
            rewards[t] = reward
            self._returns += reward
            self._lengths += 1
            ended = terminated[t] | truncated[t]
            if ended.any():
                # A step that both terminates and truncates is terminated: nothing to bootstrap.
                truncated[t] &= ~terminated[t]
                final = info["final_obs"]
                finals += [_tensor(final[index]) for index in np.flatnonzero(truncated[t])]
                episode_returns += self._returns[ended].tolist()
                episode_lengths += self._lengths[ended].tolist()
                self._returns[ended] = 0
                self._lengths[ended] = 0
        shape = self._observations.shape[1:]
        return Rollout(
            observations=observations,
            actions=torch.stack(actions),
            rewards=torch.from_numpy(rewards),
            terminated=torch.from_numpy(terminated),
            truncated=torch.from_numpy(truncated),
            next_observations=self._observations,
            final_observations=torch.stack(finals) if finals else torch.empty((0, *shape)),
            episode_returns=episode_returns,
            episode_lengths=episode_lengths,
        )


def _check(observations: Tensor, rewards: NDArray[Any]) -> None:
    # A sum is finite only if its terms are (short of overflow, which is no data either): one pass.
    if math.isfinite(float(observations.sum())) and math.isfinite(float(rewards.sum())):
        return
    seen = observations.reshape(len(rewards), -1)
    sound = torch.isfinite(seen).all(dim=1).numpy() & np.isfinite(rewards)
    raise ExperienceError(
        f"environment {np.flatnonzero(~sound).tolist()} returned a NaN or an infinity as "
        "observation or reward; mend the task, or bound what it returns with a Gymnasium wrapper"
    )


def _tensor(observations: NDArray[Any]) -> Tensor:
    # A copy: vector environments may hand out a buffer that the next step overwrites.
    return torch.from_numpy(np.array(observations, dtype=np.float32))
