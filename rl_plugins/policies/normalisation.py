"""Running statistics of observations, and their standardisation, as a part of the agent.

In a wrapper around the environment they get lost or mismatched when a policy is saved, resumed or
deployed; here they travel in its ``state_dict``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Deviations that a mean may move by at once: of 7 digits in float32, 2 are left then.
FARTHEST = 1e5
Reader = tuple[Tensor, Tensor]
"""Weight (h, d) and bias (h,) of a layer whose first inputs are standardised."""


class RunningMoments(nn.Module):
    """Mean and variance of everything seen so far, in float64, merged batch by batch.

    Parameters
    ----------
    shape
        Shape of one sample; (): numbers.

    Notes
    -----
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
        """Merge samples into the moments.

        Parameters
        ----------
        batch
            (B, *shape); B may be 0.
        """
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
    """(x − mean) / standard deviation, clipped; the identity before the first update.

    ``forward`` never updates the statistics: a policy stays one fixed function while a rollout is
    collected and while an update measures its KL. A constant component is centred, not scaled.

    Parameters
    ----------
    shape
        Shape of one observation.
    clip
        Bound on the absolute value of the result, in standard deviations.
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
        """Standardise without a change of the statistics.

        Parameters
        ----------
        observations
            (B, *shape).
        """
        standardised: Tensor = (observations - self.shift) * self.scale
        return standardised.clamp(-self.clip, self.clip)

    @torch.no_grad()
    def update(self, observations: Tensor, readers: Sequence[Reader] = ()) -> None:
        """Merge observations into the statistics.

        Parameters
        ----------
        observations
            (B, *shape).
        readers
            Layers that change so that each remains the same function of the observation, the
            clipping aside: W (x − m) s + b = W (s/s′) (x − m′) s′ + b + W (m′ − m) s. Where the
            last term is so large that float32 loses the rest in it, everything stays as it was.
        """
        kept = {name: buffer.clone() for name, buffer in self.moments.named_buffers()}
        self.moments.update(observations)
        variance = self.moments.variance
        # Below rounding of the mean a component is constant; 1/std would amplify noise.
        floor = (torch.finfo(torch.float32).eps * self.moments.mean.abs()).square()
        shift = self.moments.mean.to(self.shift)
        scale = torch.where(variance > floor, variance, 1.0).rsqrt().to(self.scale)
        ratio = (self.scale / scale).flatten()
        moved = ((shift - self.shift).double() * self.scale).flatten()
        count = len(ratio)
        new = [
            (weight[:, :count] * ratio, bias + (weight[:, :count].double() @ moved).to(bias))
            for weight, bias in readers
        ]
        found = (shift, scale, *(part for pair in new for part in pair))
        far = (bool(readers) and bool(moved.abs().max() > FARTHEST)) or not bool(scale.all())
        if far or not all(bool(torch.isfinite(part).all()) for part in found):
            for name, buffer in self.moments.named_buffers():
                buffer.copy_(kept[name])
            return
        self.shift.copy_(shift)
        self.scale.copy_(scale)
        for (weight, bias), (read, offset) in zip(readers, new, strict=True):
            weight[:, :count] = read
            bias.copy_(offset)
