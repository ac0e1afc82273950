"""Observations of any structure -> the numbers that a network reads, standardised on the way.

The statistics are a part of the agent. In a wrapper around the environment they get lost or
mismatched when a policy is saved, resumed or deployed; here they travel in its ``state_dict``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

Observations = Any
"""A tensor (B, …), or mappings and sequences of such: the structure of the observation space."""

FeatureBatch = Any
"""A tensor (B, d); with images a mapping of "vector" (B, d) and of each image (B, C, H, W)."""

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
            clipping aside: W (x − m) s + b = W (s/s′) (x − m′) s′ + b + W (m′ − m) s.
        """
        old_shift, old_scale = self.shift.flatten().clone(), self.scale.flatten().clone()
        self.moments.update(observations)
        variance = self.moments.variance
        # Below rounding of the mean a component is constant; 1/std would amplify noise.
        floor = (torch.finfo(torch.float32).eps * self.moments.mean.abs()).square()
        self.shift.copy_(self.moments.mean)
        self.scale.copy_(torch.where(variance > floor, variance, 1.0).rsqrt())
        shift, scale = self.shift.flatten(), self.scale.flatten()
        for weight, bias in readers:
            read = weight[:, : len(shift)]
            bias.add_(read @ ((shift - old_shift) * old_scale))
            read.mul_(old_scale / scale)


class LeafKind(Enum):
    """How one component of an observation enters the features."""

    NUMBERS = "flattened, standardised"
    BITS = "flattened, as they are"
    CATEGORIES = "one-hot"
    IMAGE = "kept as it is, for a CNN"


@dataclass(frozen=True)
class Leaf:
    """One component of an observation: where it lies in the structure and how it is read.

    Attributes
    ----------
    path
        Keys and indices that lead to it from the observation; (): the observation itself.
    kind
        How it enters the features.
    sizes
        By kind: (number of entries,), the numbers of categories, or (C, H, W).
    start
        Subtracted from categories; None: they begin at 0.
    channels_last
        The image is (H, W, C).
    """

    path: tuple[str | int, ...]
    kind: LeafKind
    sizes: tuple[int, ...]
    start: Tensor | None = None
    channels_last: bool = False

    @property
    def width(self) -> int:
        """Entries of the vector; 0 for an image."""
        return 0 if self.kind is LeafKind.IMAGE else sum(self.sizes)

    def read(self, observations: Observations) -> Tensor:
        """The component as numbers (B, ``width``), or as an image (B, C, H, W).

        Parameters
        ----------
        observations
            (B, …), the whole structure.
        """
        for key in self.path:
            observations = observations[key]
        found: Tensor = observations
        if self.kind is LeafKind.IMAGE:
            if found.ndim == 3:  # (B, H, W): one channel
                return found.unsqueeze(1)
            return found.movedim(-1, 1) if self.channels_last else found
        if self.kind is LeafKind.CATEGORIES:
            return self._one_hot(found.reshape(found.shape[0], len(self.sizes)))
        flat = found.reshape(found.shape[0], self.width)
        return flat if flat.is_floating_point() else flat.float()

    def _one_hot(self, found: Tensor) -> Tensor:
        chosen = found.long() - (0 if self.start is None else self.start)
        pairs = zip(chosen.unbind(1), self.sizes, strict=True)
        columns = [nn.functional.one_hot(column, size) for column, size in pairs]
        return torch.cat(columns, dim=1).float()


class Features(nn.Module):
    """Observations of a space -> features for :func:`mlp` or :class:`Perception`.

    It has no trained parameters: numbers are standardised and come first in the vector, categories
    become one-hot, images pass through untouched. One instance serves policy and critic, so that
    both see the same.

    Parameters
    ----------
    leaves
        The components of an observation.
    normalise
        Whether to standardise the numbers.
    mask
        The component that says which actions are valid, which is no feature; None: all are valid.

    Attributes
    ----------
    numbers
        Entries of the vector that are standardised; they are the first.
    width
        Entries of the vector.
    images
        (C, H, W) of every image, by name.
    normaliser
        The statistics of the numbers; None where nothing is standardised.
    """

    def __init__(self, leaves: Sequence[Leaf], normalise: bool, mask: Leaf | None = None) -> None:
        super().__init__()
        self._numbers = [leaf for leaf in leaves if leaf.kind is LeafKind.NUMBERS]
        self._codes = [leaf for leaf in leaves if leaf.kind in (LeafKind.BITS, LeafKind.CATEGORIES)]
        images = [leaf for leaf in leaves if leaf.kind is LeafKind.IMAGE]
        self._images = {f"image{index}": leaf for index, leaf in enumerate(images)}
        self._mask = mask
        self.numbers = sum(leaf.width for leaf in self._numbers)
        self.width = self.numbers + sum(leaf.width for leaf in self._codes)
        self.images: dict[str, tuple[int, int, int]] = {
            name: (*leaf.sizes,)  # type: ignore[misc]
            for name, leaf in self._images.items()
        }
        self.normaliser = (
            ObservationNormaliser((self.numbers,)) if normalise and self.numbers else None
        )

    def forward(self, observations: Observations) -> FeatureBatch:
        """The vector (B, d), or with images a mapping of it and of them.

        Parameters
        ----------
        observations
            (B, …), in the structure of the space.
        """
        parts = []
        if self._numbers:
            numbers = self._read_numbers(observations)
            parts.append(numbers if self.normaliser is None else self.normaliser(numbers))
        parts += [leaf.read(observations) for leaf in self._codes]
        images = {name: leaf.read(observations) for name, leaf in self._images.items()}
        if not images:
            return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        count = next(iter(images.values())).shape[0]
        vector = torch.cat(parts, dim=1) if parts else torch.empty(count, 0)
        return {"vector": vector, **images}

    def mask(self, observations: Observations) -> Tensor | None:
        """Which actions are valid, (B, choices) bool; None where the task does not say.

        Parameters
        ----------
        observations
            (B, …), in the structure of the space.
        """
        return None if self._mask is None else self._mask.read(observations) != 0

    def update(self, observations: Observations, readers: Sequence[Reader] = ()) -> None:
        """Merge the numbers of a batch into the statistics.

        Parameters
        ----------
        observations
            (B, …), in the structure of the space.
        readers
            Layers that are to stay the same functions: see :meth:`ObservationNormaliser.update`.
        """
        if self.normaliser is not None:
            self.normaliser.update(self._read_numbers(observations), readers)

    def _read_numbers(self, observations: Observations) -> Tensor:
        parts = [leaf.read(observations) for leaf in self._numbers]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
