"""How an agent acts in N environments at once, step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from rl_plugins.policies.noise import Noise
from rl_plugins.policies.policy import Policy, RecurrentPolicy
from rl_plugins.policies.sampling import sample

ToEnvironment = Callable[[Tensor], Any]
"""Actions (N, …) of a policy -> the argument of a vector environment's ``step``."""


class Behaviour(Protocol):
    """An agent as data collection and evaluation see it.

    Attributes
    ----------
    memory
        The memory (N, h) of a recurrent policy; None for others.
    """

    memory: Tensor | None

    def act(self, observations: Any, generator: torch.Generator) -> Tensor:
        """Actions (N, …) in the policy's units, as the update learns from them.

        Parameters
        ----------
        observations
            (N, …), in the structure of the space.
        generator
            Source of all randomness.
        """

    def to_environment(self, actions: Tensor) -> Any:
        """The argument of a vector environment's ``step``.

        Parameters
        ----------
        actions
            (N, …), from :meth:`act`.
        """

    def forget(self, starts: Tensor) -> None:
        """Drop all that was remembered of ended episodes.

        Parameters
        ----------
        starts
            (N,) bool: the environments that begin an episode.
        """


class Sampling:
    """Draws from the policy's distribution, or its mode.

    Parameters
    ----------
    policy
        Observations (N, …) -> a distribution with batch shape (N,).
    to_environment
        Its actions -> those of a vector environment.
    explore
        Draw; False: take the mode.
    """

    memory: Tensor | None = None

    def __init__(self, policy: Policy, to_environment: ToEnvironment, *, explore: bool) -> None:
        self._policy, self.to_environment, self._explore = policy, to_environment, explore

    def act(self, observations: Any, generator: torch.Generator) -> Tensor:
        """See :meth:`Behaviour.act`."""
        distribution = self._policy(observations)
        return sample(distribution, generator) if self._explore else distribution.mode

    def forget(self, starts: Tensor) -> None:
        """See :meth:`Behaviour.forget`; nothing is remembered."""


class Remembering:
    """Draws from a recurrent policy's distribution, or its mode, and keeps its memory.

    Parameters
    ----------
    policy
        The policy.
    count
        N, the number of environments.
    to_environment
        Its actions -> those of a vector environment.
    explore
        Draw; False: take the mode.
    """

    def __init__(
        self, policy: RecurrentPolicy, count: int, to_environment: ToEnvironment, *, explore: bool
    ) -> None:
        self._policy, self.to_environment, self._explore = policy, to_environment, explore
        self.memory: Tensor | None = policy.initial_memory(count)

    def act(self, observations: Any, generator: torch.Generator) -> Tensor:
        """See :meth:`Behaviour.act`; the memory moves on by one step."""
        assert self.memory is not None
        distribution, self.memory = self._policy.advance(observations, self.memory)
        return sample(distribution, generator) if self._explore else distribution.mode

    def forget(self, starts: Tensor) -> None:
        """See :meth:`Behaviour.forget`."""
        assert self.memory is not None
        self.memory = self.memory.masked_fill(starts.unsqueeze(1), 0.0)


class Exploring:
    """A deterministic policy's actions, with noise, clipped to ±1, or drawn uniformly.

    Parameters
    ----------
    policy
        μ: observations (N, …) -> actions (N, d).
    to_environment
        Its actions -> those of a vector environment.
    noise
        Added to the actions; None: they are μ(s) exactly.
    random
        Says before every step whether actions are uniform in ±1 instead, as while a replay buffer
        fills; not asked without ``noise``.
    """

    memory: Tensor | None = None

    def __init__(
        self,
        policy: Callable[[Any], Tensor],
        to_environment: ToEnvironment,
        noise: Noise | None,
        random: Callable[[], bool],
    ) -> None:
        self._policy, self.to_environment = policy, to_environment
        self._noise, self._random = noise, random

    def act(self, observations: Any, generator: torch.Generator) -> Tensor:
        """See :meth:`Behaviour.act`."""
        actions = self._policy(observations)
        if self._noise is None:
            return actions
        if self._random():
            return 2 * torch.rand(actions.shape, generator=generator) - 1
        noise = self._noise.draw(actions.shape, generator)
        return (actions + noise).clamp(-1, 1)

    def forget(self, starts: Tensor) -> None:
        """See :meth:`Behaviour.forget`."""
        if self._noise is not None:
            self._noise.forget(starts)
