"""Data of a forward function: a tensor, or mappings and sequences of tensors, cut along dim 0."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def length(data: Any) -> int:
    """The number of samples. Raises ``ValueError`` where tensors disagree or there are none."""
    if isinstance(data, Tensor):
        return data.shape[0]
    lengths = {length(part) for part in (data.values() if isinstance(data, Mapping) else data)}
    if len(lengths) != 1:
        raise ValueError(f"all tensors of the data must have one length, got {sorted(lengths)}")
    return lengths.pop()


def take(data: Any, index: slice | Tensor) -> Any:
    """The samples of ``index`` from every tensor."""
    if isinstance(data, Tensor):
        return data[index]
    if isinstance(data, Mapping):
        return {key: take(value, index) for key, value in data.items()}
    return tuple(take(value, index) for value in data)


def subset(samples: int, fraction: float, generator: torch.Generator | None) -> Tensor:
    """The indices of ⌈fraction · samples⌉ samples, drawn without replacement.

    Raises ``ValueError`` for a fraction outside (0, 1], or without a generator below 1: which
    samples are drawn should be the caller's to repeat.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction}")
    if fraction < 1 and generator is None:
        raise ValueError("fraction below 1 needs generator=torch.Generator().manual_seed(...)")
    if fraction == 1:
        return torch.arange(samples)
    return torch.randperm(samples, generator=generator)[: math.ceil(fraction * samples)]
