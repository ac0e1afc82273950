"""From a policy's actions, in its own units, to those of a vector environment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class ActionMap(Protocol):
    """A policy's actions -> those of a vector environment: arrays, or a dict or tuple of them."""

    def __call__(self, actions: Tensor) -> Any:
        """The actions of the task, as NumPy arrays (N, …).

        Parameters
        ----------
        actions
            (N, …), in the policy's units.
        """

    def as_tensors(self, actions: Tensor) -> Any:
        """The same in torch operations, for a policy that is deployed without this package.

        Parameters
        ----------
        actions
            (N, …), in the policy's units.
        """


@dataclass(frozen=True)
class Shift:
    """Choices (N, …) from 0 on, moved to where the space starts.

    Attributes
    ----------
    start
        The number of the first choice, in the shape of the space.
    dtype
        Number type of the space.
    """

    start: NDArray[np.int64]
    dtype: Any

    def __call__(self, actions: Tensor) -> NDArray[Any]:
        """See :meth:`ActionMap.__call__`."""
        chosen = actions.numpy().astype(np.int64).reshape(-1, *self.start.shape) + self.start
        return chosen.astype(self.dtype, copy=False)

    def as_tensors(self, actions: Tensor) -> Tensor:
        """See :meth:`ActionMap.as_tensors`."""
        return actions.long().reshape(-1, *self.start.shape) + torch.from_numpy(self.start)


@dataclass(frozen=True)
class Bits:
    """Zeros and ones (N, k) in the shape of the space.

    Attributes
    ----------
    shape
        Shape of the space, k entries.
    """

    shape: tuple[int, ...]

    def __call__(self, actions: Tensor) -> NDArray[np.int8]:
        """See :meth:`ActionMap.__call__`."""
        return actions.numpy().astype(np.int8).reshape(-1, *self.shape)

    def as_tensors(self, actions: Tensor) -> Tensor:
        """See :meth:`ActionMap.as_tensors`."""
        return actions.to(torch.int8).reshape(-1, *self.shape)


@dataclass(frozen=True)
class Stretch:
    """±1 stretched to the bounds of a Box, and clipped to them, or squashed by tanh before.

    Attributes
    ----------
    low, high
        Bounds; these and the next three have the shape of the space.
    middle
        Where action 0 lies: the middle of the range of a bounded dimension.
    unit
        Length of action 1: half the range of a bounded dimension, 1 for others.
    bounded
        The dimensions that have two bounds.
    squash
        Whether bounded dimensions are squashed by tanh before.
    dtype
        Number type of the space.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    middle: NDArray[np.float64]
    unit: NDArray[np.float64]
    bounded: NDArray[np.bool_]
    squash: bool
    dtype: Any

    def __call__(self, actions: Tensor) -> NDArray[Any]:
        """See :meth:`ActionMap.__call__`."""
        chosen = actions.numpy().reshape(-1, *self.low.shape)
        if self.squash:
            chosen = np.where(self.bounded, np.tanh(chosen), chosen)
        wanted = chosen * self.unit + self.middle
        # Two ufuncs: np.clip costs three times as much on arrays this small.
        within: NDArray[Any] = np.minimum(np.maximum(wanted, self.low), self.high)
        return within.astype(self.dtype)

    def as_tensors(self, actions: Tensor) -> Tensor:
        """See :meth:`ActionMap.as_tensors`."""
        low, high, middle, unit = (
            torch.from_numpy(array.astype(np.float32))
            for array in (self.low, self.high, self.middle, self.unit)
        )
        chosen = actions.reshape(-1, *self.low.shape)
        if self.squash:
            chosen = torch.where(torch.from_numpy(self.bounded), torch.tanh(chosen), chosen)
        return torch.minimum(torch.maximum(chosen * unit + middle, low), high)


@dataclass(frozen=True)
class Pieces:
    """The columns (N, k) of a joint action, each component through its own map.

    Attributes
    ----------
    maps
        One for each component, by name; a Tuple's by position.
    widths
        Columns of each component.
    named
        Whether the task takes a dict; a tuple otherwise.
    """

    maps: dict[str, ActionMap]
    widths: tuple[int, ...]
    named: bool

    def __call__(self, actions: Tensor) -> dict[str, Any] | tuple[Any, ...]:
        """See :meth:`ActionMap.__call__`."""
        mapped = {key: to(piece) for key, (to, piece) in self._pairs(actions).items()}
        return mapped if self.named else tuple(mapped.values())

    def as_tensors(self, actions: Tensor) -> dict[str, Any]:
        """See :meth:`ActionMap.as_tensors`; always a dict."""
        return {key: to.as_tensors(piece) for key, (to, piece) in self._pairs(actions).items()}

    def _pairs(self, actions: Tensor) -> dict[str, tuple[ActionMap, Tensor]]:
        pieces = torch.split(actions, list(self.widths), dim=1)
        triples = zip(self.maps.items(), pieces, strict=True)
        return {key: (to, piece) for (key, to), piece in triples}
