"""Exploration noise for deterministic policies."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Noise(Protocol):
    """Noise added to actions, in half ranges of the action; one stream for each environment."""

    def draw(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """The noise of one step.

        Parameters
        ----------
        shape
            (N, d) of the actions.
        generator
            Source of all randomness.
        """

    def forget(self, starts: Tensor) -> None:
        """Begin anew where an episode begins.

        Parameters
        ----------
        starts
            (N,) bool.
        """


class GaussianNoise:
    """Noise that is independent from step to step.

    Parameters
    ----------
    scale
        Standard deviation, in half ranges of the action.
    """

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def draw(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """See :meth:`Noise.draw`."""
        return self.scale * torch.randn(shape, generator=generator)

    def forget(self, starts: Tensor) -> None:
        """See :meth:`Noise.forget`; nothing is remembered."""


class OrnsteinUhlenbeckNoise:
    """x′ = ρ x + √(1 − ρ²) · scale · ε, with ρ = 1 − ``reversion``; begins anew with an episode.

    Parameters
    ----------
    scale
        Standard deviation that the noise settles at, in half ranges of the action: it means the
        same as for :class:`GaussianNoise`. In Lillicrap et al. 2016 and most code σ is that of one
        step, and the noise settles at 1.9 σ for θ = 0.15.
    reversion
        θ, the part of the noise that is lost in a step: smaller for slower noise.
    """

    def __init__(self, scale: float, reversion: float = 0.15) -> None:
        self.scale, self.correlation = scale, 1 - reversion
        self._state: Tensor | None = None

    def draw(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """See :meth:`Noise.draw`."""
        fresh = self.scale * torch.randn(shape, generator=generator)
        if self._state is None or self._state.shape != shape:
            self._state = torch.zeros(shape)
        renewal: float = (1 - self.correlation**2) ** 0.5
        self._state = self.correlation * self._state + renewal * fresh
        return self._state

    def forget(self, starts: Tensor) -> None:
        """See :meth:`Noise.forget`."""
        if self._state is not None:
            self._state = self._state.masked_fill(starts.unsqueeze(1), 0.0)
