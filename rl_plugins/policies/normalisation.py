"""Running moments, and what is standardised by them, inside the agent and saved with it.

As a wrapper around the environment the statistics get lost or mismatched when a policy is saved,
resumed or deployed; as a module they travel in its ``state_dict``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Reader = tuple[Tensor, Tensor]
"""Weight (h, d) and bias (h,) of a layer whose first inputs are standardised."""


class RunningMoments(nn.Module):
    """Mean and variance of everything seen so far, in float64, merged batch by batch.

    Source: Chan, Golub & LeVeque, "Algorithms for computing the sample variance", 1983, eq. 2.1.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, shape: Sequence[int] = ()) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(tuple(shape), dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(tuple(shape), dtype=torch.float64))

    @torch.no_grad()
    def update(self, batch: Tensor) -> None:
        """Merge a batch (B, *shape)."""
        if not len(batch):
            return
        batch = batch.double()
        mean = batch.mean(dim=0)
        squares = (batch - mean).square().sum(dim=0)
        total = self.count + len(batch)
        difference = mean - self.mean
        self.mean += difference * (len(batch) / total)
        self.squares += squares + difference.square() * (self.count * len(batch) / total)
        self.count.copy_(total)

    @property
    def variance(self) -> Tensor:
        """Population variance; 1 before the first sample."""
        return self.squares / self.count if bool(self.count) else torch.ones_like(self.squares)


class ObservationNormaliser(nn.Module):
    """(x − mean) / standard deviation, clipped to ±``clip``; the identity before any update.

    ``forward`` never updates the statistics: a policy stays one fixed function while a rollout is
    collected and while an update measures its KL. A constant component is centred, not scaled.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, shape: Sequence[int], clip: float = 10.0) -> None:
        super().__init__()
        self.moments = RunningMoments(shape)
        self.clip = clip
        self.register_buffer("shift", torch.zeros(tuple(shape)))
        self.register_buffer("scale", torch.ones(tuple(shape)))

    def forward(self, observations: Tensor) -> Tensor:
        standardised: Tensor = (observations - self.shift) * self.scale
        return standardised.clamp(-self.clip, self.clip)

    @torch.no_grad()
    def update(self, observations: Tensor, readers: Sequence[Reader] = ()) -> None:
        """Take a batch (B, *shape) into the statistics.

        The ``readers`` change so that each remains the same function of the observation, the
        clipping aside: W (x − m) s + b = W (s/s′) (x − m′) s′ + b + W (m′ − m) s.
        """
        old_shift, old_scale = self.shift.flatten().clone(), self.scale.flatten().clone()
        self._move(observations)
        shift, scale = self.shift.flatten(), self.scale.flatten()
        for weight, bias in readers:
            read = weight[:, : len(shift)]
            bias.add_(read @ ((shift - old_shift) * old_scale))
            read.mul_(old_scale / scale)

    def _move(self, observations: Tensor) -> None:
        self.moments.update(observations)
        variance = self.moments.variance
        # Below rounding of the mean a component is constant; 1/std would amplify noise.
        floor = (torch.finfo(torch.float32).eps * self.moments.mean.abs()).square()
        usable = variance > floor
        self.shift.copy_(self.moments.mean)
        self.scale.copy_(torch.where(usable, variance, torch.ones_like(variance)).rsqrt())


class RewardNormaliser(nn.Module):
    """Rewards divided by the running deviation of the discounted return, clipped to ±``clip``.

    Not centred: a shift of all rewards changes which episode length is best. The return so far of
    every environment runs on from one rollout to the next.
    """

    scale: Tensor

    def __init__(self, discount: float, clip: float = 10.0) -> None:
        super().__init__()
        self.moments = RunningMoments()
        self.discount, self.clip = discount, clip
        self.register_buffer("scale", torch.ones(()))
        self._running: Tensor | None = None

    @torch.no_grad()
    def update(self, rewards: Tensor, starts: Tensor, valid: Tensor) -> None:
        """Take rewards (T, N) into the statistics; ``starts`` (T, N) begins a return, and steps
        that are not ``valid`` only reset an environment."""
        if self._running is None or len(self._running) != rewards.shape[1]:
            self._running = torch.zeros(rewards.shape[1], dtype=torch.float64)
        returns = torch.empty(rewards.shape, dtype=torch.float64)
        for t, reward in enumerate(rewards.double()):
            self._running = self._running.masked_fill(starts[t], 0.0) * self.discount + reward
            returns[t] = self._running
        self.moments.update(returns[valid])
        deviation = self.moments.variance.sqrt()
        if bool(deviation > torch.finfo(torch.float32).eps * self.moments.mean.abs()):
            self.scale.copy_(deviation)

    def forward(self, rewards: Tensor) -> Tensor:
        scaled: Tensor = (rewards / self.scale).clamp(-self.clip, self.clip)
        return scaled
