"""Observations of any structure -> the numbers that a network reads, standardised on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from rl_plugins.policies.normalisation import ObservationNormaliser, Reader

Observations = Any
"""A tensor (B, …), or mappings and sequences of such: the structure of the observation space."""

FeatureBatch = Any
"""A tensor (B, d); with images a mapping of "vector" (B, d) and of each image (B, C, H, W)."""


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
    frames
        Images in a stack, whose channels are joined; 1 where there is no dimension for them.
    scale
        Multiplies an image of numbers other than bytes.
    """

    path: tuple[str | int, ...]
    kind: LeafKind
    sizes: tuple[int, ...]
    start: Tensor | None = None
    channels_last: bool = False
    frames: int = 1
    scale: float = 1.0

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
            return self._pixels(found)
        if self.kind is LeafKind.CATEGORIES:
            return self._one_hot(found.reshape(found.shape[0], len(self.sizes)))
        flat = found.reshape(found.shape[0], self.width)
        return flat if flat.is_floating_point() else flat.float()

    def _pixels(self, found: Tensor) -> Tensor:
        if found.dtype != torch.uint8:
            found = found.float() * self.scale
        if found.ndim == 3:  # (B, H, W): one channel
            return found.unsqueeze(1)
        if found.ndim == 5:  # (B, frames, …): channels of all frames, the oldest first
            found = found.movedim(-1, 2) if self.channels_last else found
            return found.flatten(1, 2)
        return found.movedim(-1, 1) if self.channels_last else found

    def describe(self) -> str:
        """How the component is read, in a few words."""
        name = ".".join(map(str, self.path))
        if self.kind is LeafKind.IMAGE:
            channels, height, width = self.sizes
            text = f"an image of {height} × {width}, {channels} channels"
            text += f" ({self.frames} frames)" * (self.frames > 1)
        else:
            what = {"NUMBERS": "numbers", "BITS": "bits", "CATEGORIES": "categories, one-hot"}
            text = f"{self.width} {what[self.kind.name]}"
        return f"{name}: {text}" if name else text

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

    def describe(self) -> str:
        """How observations are read: each component, and the mask."""
        leaves = [*self._numbers, *self._codes, *self._images.values()]
        parts = [leaf.describe() for leaf in leaves]
        if self.normaliser is not None:
            parts = [p.replace(" numbers", " standardised numbers") for p in parts]
        return ", ".join(parts) + (", and a mask of actions" if self._mask is not None else "")

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
