"""Observations of any structure -> what a network reads."""

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
    """One component: where it lies in the structure and how it is read.

    ``sizes`` are, by kind, the number of entries, the numbers of categories, or (C, H, W);
    ``start`` is subtracted from categories; ``channels_last`` says that an image is (H, W, C).
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
        columns = [
            nn.functional.one_hot(column, size)
            for column, size in zip(chosen.unbind(1), self.sizes, strict=True)
        ]
        return torch.cat(columns, dim=1).float()


class Features(nn.Module):
    """Observations of a space -> features for :func:`mlp` or :class:`Perception`.

    Without trained parameters: numbers are standardised by ``normaliser`` (None: as they are), and
    come first in the vector; categories become one-hot; images pass through untouched. One
    instance serves policy and critic, so that both see the same. ``mask`` is the component that
    says which actions are valid; it is no feature.
    """

    def __init__(self, leaves: Sequence[Leaf], normalise: bool, mask: Leaf | None = None) -> None:
        super().__init__()
        self._numbers = [leaf for leaf in leaves if leaf.kind is LeafKind.NUMBERS]
        self._codes = [leaf for leaf in leaves if leaf.kind in (LeafKind.BITS, LeafKind.CATEGORIES)]
        images = [leaf for leaf in leaves if leaf.kind is LeafKind.IMAGE]
        self._images = {f"image{index}": leaf for index, leaf in enumerate(images)}
        self._mask = mask
        self.numbers = sum(leaf.width for leaf in self._numbers)
        """Entries of the vector that are standardised; they are the first."""
        self.width = self.numbers + sum(leaf.width for leaf in self._codes)
        """Entries of the vector."""
        self.normaliser = (
            ObservationNormaliser((self.numbers,)) if normalise and self.numbers else None
        )

    @property
    def images(self) -> dict[str, tuple[int, int, int]]:
        """(C, H, W) of every image."""
        return {name: (*leaf.sizes,) for name, leaf in self._images.items()}  # type: ignore[misc]

    def forward(self, observations: Observations) -> FeatureBatch:
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
        """Which actions are valid, (B, choices) bool; None where the task does not say."""
        return None if self._mask is None else self._mask.read(observations) != 0

    def update(self, observations: Observations, readers: Sequence[Reader] = ()) -> None:
        """Take the numbers of a batch into the statistics: see :class:`ObservationNormaliser`."""
        if self.normaliser is not None:
            self.normaliser.update(self._read_numbers(observations), readers)

    def _read_numbers(self, observations: Observations) -> Tensor:
        parts = [leaf.read(observations) for leaf in self._numbers]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
