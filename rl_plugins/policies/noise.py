"""Exploration noise for deterministic policies."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Noise(Protocol):
    """Noise (N, d) added to actions, in half ranges of the action; one stream an environment."""

    def draw(self, shape: torch.Size, generator: torch.Generator) -> Tensor: ...

    def forget(self, starts: Tensor) -> None: ...


class GaussianNoise:
    """Independent from step to step, with standard deviation ``scale``."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def draw(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        return self.scale * torch.randn(shape, generator=generator)

    def forget(self, starts: Tensor) -> None:
        pass


class OrnsteinUhlenbeckNoise:
    """x′ = ρ x + √(1 − ρ²) · scale · ε, with ρ = 1 − ``reversion``; begins anew with an episode.

    Different from Lillicrap et al. 2016 and most code, ``scale`` is the standard deviation that the
    noise settles at, so that it means the same as for :class:`GaussianNoise`; theirs settles at
    1.9 times σ for θ = 0.15.
    """

    def __init__(self, scale: float, reversion: float = 0.15) -> None:
        self.scale, self.correlation = scale, 1 - reversion
        self._state: Tensor | None = None

    def draw(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        fresh = self.scale * torch.randn(shape, generator=generator)
        if self._state is None or self._state.shape != shape:
            self._state = torch.zeros(shape)
        renewal: float = (1 - self.correlation**2) ** 0.5
        self._state = self.correlation * self._state + renewal * fresh
        return self._state

    def forget(self, starts: Tensor) -> None:
        if self._state is not None:
            self._state = self._state.masked_fill(starts.unsqueeze(1), 0.0)
