"""Rollouts of fixed length from a vector of environments."""

from __future__ import annotations

from typing import Any

import numpy as np
import optree
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from rl_plugins.data.autoreset import Environments
from rl_plugins.data.rollout import Rollout
from rl_plugins.data.workers import PATIENCE
from rl_plugins.policies import Behaviour


class RolloutCollector:
    """Steps environments with a behaviour; episodes run on from one rollout to the next.

    Parameters
    ----------
    environments
        Any vector environment of Gymnasium's interface.
    behaviour
        How the agent acts in them.
    seed
        Seed of the environments.
    generator
        Draws the actions.
    patience
        Seconds that a step in another process may take.
    """

    def __init__(
        self,
        environments: VectorEnv,
        behaviour: Behaviour,
        *,
        seed: int,
        generator: torch.Generator,
        patience: float = PATIENCE,
    ) -> None:
        self._environments = Environments(environments, patience=patience)
        self._behaviour, self._generator = behaviour, generator
        count = self._environments.count
        self._returns = np.zeros(count)
        self._lengths = np.zeros(count, dtype=np.int64)
        self.restart(seed)

    def restart(self, seed: int) -> None:
        """Begin new episodes everywhere. Those that were going on are dropped, and not reported.

        Parameters
        ----------
        seed
            Seed of the environments.
        """
        self._observations = self._environments.reset(seed)
        self._returns[:] = 0
        self._lengths[:] = 0
        self._starts = np.ones(self._environments.count, dtype=bool)
        self._behaviour.forget(torch.from_numpy(self._starts))

    def collect(self, steps: int) -> Rollout:
        """A rollout of fixed length.

        Parameters
        ----------
        steps
            Steps of every environment.

        Raises
        ------
        ExperienceError
            Where an observation or a reward is NaN or infinite.
        """
        count = self._environments.count
        observations = optree.tree_map(
            lambda leaf: leaf.new_empty((steps, *leaf.shape)), self._observations
        )
        rewards = np.empty((steps, count), dtype=np.float32)
        terminated, truncated, starts, valid = (
            np.empty((steps, count), dtype=bool) for _ in range(4)
        )
        actions: list[Tensor] = []
        memories: list[Tensor] = []
        finals: list[Any] = []
        final_memories: list[Tensor] = []
        episode_returns: list[float] = []
        episode_lengths: list[int] = []
        for t in range(steps):
            _write(observations, t, self._observations)
            starts[t] = self._starts
            if self._behaviour.memory is not None:
                memories.append(self._behaviour.memory)
            # Cheaper than no_grad for small networks; its tensors are copied into plain ones.
            with torch.inference_mode():
                action = self._behaviour.act(self._observations, self._generator)
            actions.append(action)
            step = self._environments.step(self._behaviour.to_environment(action))
            self._observations = step.observations
            rewards[t], valid[t] = step.rewards, step.valid
            terminated[t], truncated[t] = step.terminated, step.truncated
            self._returns += step.rewards * step.valid
            self._lengths += step.valid
            ended = step.terminated | step.truncated
            if ended.any():
                finals += step.final
                if self._behaviour.memory is not None:
                    final_memories.append(self._behaviour.memory[torch.from_numpy(step.truncated)])
                episode_returns += self._returns[ended].tolist()
                episode_lengths += self._lengths[ended].tolist()
                self._returns[ended] = 0
                self._lengths[ended] = 0
            self._starts = step.starts
            if self._starts.any():
                self._behaviour.forget(torch.from_numpy(self._starts))
        return Rollout(
            observations=observations,
            actions=torch.stack(actions),
            rewards=torch.from_numpy(rewards),
            terminated=torch.from_numpy(terminated),
            truncated=torch.from_numpy(truncated),
            starts=torch.from_numpy(starts),
            valid=torch.from_numpy(valid),
            next_observations=self._observations,
            final_observations=_stack(finals, self._observations),
            episode_returns=episode_returns,
            episode_lengths=episode_lengths,
            memories=torch.stack(memories) if memories else None,
            next_memory=_plain(self._behaviour.memory),
            final_memories=torch.cat(final_memories) if final_memories else None,
        )


def _write(buffer: Any, index: int, observations: Any) -> None:
    if isinstance(buffer, Tensor):
        buffer[index] = observations
        return
    optree.tree_map_(lambda kept, new: kept[index].copy_(new), buffer, observations)


def _stack(parts: list[Any], like: Any) -> Any:
    """(K, …) from K observations; of no rows, in the structure of ``like`` (N, …), for K = 0."""
    if not parts:
        return optree.tree_map(lambda leaf: leaf[:0], like)
    return optree.tree_map(lambda *leaves: torch.stack(leaves), *parts)


def _plain(memory: Tensor | None) -> Tensor | None:
    # Out of inference mode, so that an update may use it.
    return None if memory is None else memory.clone()
