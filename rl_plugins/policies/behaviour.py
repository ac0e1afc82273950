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
"""Actions (N, …) of a policy -> what a vector environment's ``step`` takes."""


class Behaviour(Protocol):
    """What collection and evaluation know of an agent.

    ``act`` maps observations (N, …) to actions (N, …) in the policy's own units, as they are
    learnt from; ``to_environment`` maps those to the task's. ``memory`` (N, h) is what a recurrent
    policy remembers, None for others; ``forget`` (N,) bool names the environments that start anew.
    """

    memory: Tensor | None

    def act(self, observations: Any, generator: torch.Generator) -> Tensor: ...

    def to_environment(self, actions: Tensor) -> Any: ...

    def forget(self, starts: Tensor) -> None: ...


class Sampling:
    """Draws from the policy's distribution, or with ``explore=False`` its mode."""

    memory: Tensor | None = None

    def __init__(self, policy: Policy, to_environment: ToEnvironment, *, explore: bool) -> None:
        self._policy, self.to_environment, self._explore = policy, to_environment, explore

    def act(self, observations: Any, generator: torch.Generator) -> Tensor:
        distribution = self._policy(observations)
        return sample(distribution, generator) if self._explore else distribution.mode

    def forget(self, starts: Tensor) -> None:
        pass


class Remembering:
    """The same for a recurrent policy in ``count`` environments."""

    def __init__(
        self, policy: RecurrentPolicy, count: int, to_environment: ToEnvironment, *, explore: bool
    ) -> None:
        self._policy, self.to_environment, self._explore = policy, to_environment, explore
        self.memory: Tensor | None = policy.initial_memory(count)

    def act(self, observations: Any, generator: torch.Generator) -> Tensor:
        assert self.memory is not None
        distribution, self.memory = self._policy.advance(observations, self.memory)
        return sample(distribution, generator) if self._explore else distribution.mode

    def forget(self, starts: Tensor) -> None:
        assert self.memory is not None
        self.memory = self.memory.masked_fill(starts.unsqueeze(1), 0.0)


class Exploring:
    """μ(s) plus noise, clipped to ±1; uniform while ``random`` says so; with neither, μ(s)."""

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
        actions = self._policy(observations)
        if self._noise is None:
            return actions
        if self._random():
            return 2 * torch.rand(actions.shape, generator=generator) - 1
        noise = self._noise.draw(actions.shape, generator)
        return (actions + noise).clamp(-1, 1)

    def forget(self, starts: Tensor) -> None:
        if self._noise is not None:
            self._noise.forget(starts)
