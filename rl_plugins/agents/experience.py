"""The replay buffer of an off-policy agent, and how many gradient steps are due."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from rl_plugins.data import ReplayBuffer, Rollout, Transitions
from rl_plugins.policies import GaussianNoise, Noise, OrnsteinUhlenbeckNoise
from rl_plugins.settings import Settings, require_least, require_one_of, require_sizes


@dataclass(frozen=True)
class OffPolicyConfig(Settings):
    """Settings of the networks, the replay buffer and the exploration."""

    hidden_sizes: tuple[int, ...] = (256, 256)
    """Widths of the hidden ReLU layers of the actor and of the critic; narrower for speed."""
    observations: Literal["auto", "image", "numbers"] = "auto"
    """How a Box is read: "image" or "numbers" where the guess, which a run prints, is wrong."""
    body: str = ""
    """A network of one's own in front of the hidden layers, "module:function": the function of
    (width, images) makes a module."""
    buffer_size: int = 1_000_000
    """Transitions kept for replay; fewer where memory is short, as for images."""
    batch_size: int = 256
    """Transitions of a gradient step; fewer for speed."""
    learning_starts: int = 10_000
    """Steps of uniformly random actions before the first gradient step; fewer for short runs."""
    updates_per_step: float = 1.0
    """Gradient steps for every environment step; fewer where steps of the task are cheap."""
    noise: Literal["gaussian", "ornstein-uhlenbeck"] = "gaussian"
    """Exploration noise: independent from step to step, or slowly changing, for tasks that filter
    quick changes out."""
    noise_scale: float = 0.1
    """Its standard deviation, in half ranges of the action; more where nothing new is found."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of(self, "noise", "gaussian", "ornstein-uhlenbeck")
        require_one_of(self, "observations", "auto", "image", "numbers")
        require_sizes(self, "hidden_sizes")
        require_least(self, 1, "batch_size", "learning_starts")
        require_least(self, 2, "buffer_size")
        require_least(self, 0, "noise_scale", "updates_per_step")
        if self.buffer_size < self.learning_starts:
            raise ValueError(
                f"buffer_size ({self.buffer_size}) must hold learning_starts "
                f"({self.learning_starts}) transitions"
            )


class Experience:
    """The replay buffer, and how many gradient steps are due.

    Parameters
    ----------
    config
        Sizes, the noise, and the gradient steps for every environment step.
    to_environment
        The policy's actions -> those of a vector environment.
    """

    def __init__(self, config: OffPolicyConfig, to_environment: Callable[[Tensor], Any]) -> None:
        self._config, self.to_environment = config, to_environment
        self.buffer = ReplayBuffer(config.buffer_size)
        self.seen = 0
        self.owed = 0.0

    def noise(self) -> Noise:
        """Exploration noise of the kind that the config names, without a past."""
        if self._config.noise == "gaussian":
            return GaussianNoise(self._config.noise_scale)
        return OrnsteinUhlenbeckNoise(self._config.noise_scale)

    def is_warming_up(self) -> bool:
        """Whether there are too few steps yet for the first gradient step."""
        return self.seen < self._config.learning_starts

    def draw(self, rollout: Rollout, generator: torch.Generator) -> Iterator[Transitions]:
        """Store a rollout; then yield a minibatch for each gradient step that is due.

        Parameters
        ----------
        rollout
            Collected with any policy.
        generator
            Draws the minibatches.
        """
        self.buffer.add(rollout)
        self.seen += rollout.steps
        if self.is_warming_up():
            return
        self.owed += rollout.steps * self._config.updates_per_step
        for _ in range(int(self.owed)):
            yield self.buffer.sample(self._config.batch_size, generator)
        self.owed -= int(self.owed)
