"""Data of a forward function: a tensor, or mappings and sequences of tensors, cut along dim 0."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def length(data: Any) -> int:
    """The number of samples. Raises ``TypeError`` for what is no tensor, ``ValueError`` where
    tensors disagree or have no dimension."""
    if isinstance(data, Tensor):
        if not data.ndim:
            raise ValueError("data of shape () have no samples; the first dimension counts them")
        return data.shape[0]
    if isinstance(data, Mapping):
        lengths = {length(part) for part in data.values()}
    elif isinstance(data, (list, tuple)):
        lengths = {length(part) for part in data}
    else:
        raise TypeError(
            "data must be a tensor, or mappings, lists and tuples of tensors, got "
            f"{type(data).__name__}; bind anything else in the forward function"
        )
    if len(lengths) != 1:
        raise ValueError(f"all tensors of the data must have one length, got {sorted(lengths)}")
    return lengths.pop()


def take(data: Any, index: slice | Tensor) -> Any:
    """The samples of ``index`` from every tensor, in the containers that they came in."""
    if isinstance(data, Tensor):
        return data[index.to(data.device) if isinstance(index, Tensor) else index]
    if isinstance(data, Mapping):
        return {key: take(value, index) for key, value in data.items()}
    parts = [take(value, index) for value in data]
    if hasattr(data, "_fields"):  # a named tuple
        return type(data)(*parts)
    return type(data)(parts)


def subset(samples: int, fraction: float, generator: torch.Generator | None) -> Tensor:
    """The indices of ⌈fraction · samples⌉ samples, drawn without replacement.

    Raises ``ValueError`` for a fraction outside (0, 1], or without a generator: which samples are
    drawn should be the caller's to repeat.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction}")
    if generator is None:
        raise ValueError("fraction below 1 needs generator=torch.Generator().manual_seed(...)")
    order = torch.randperm(samples, generator=generator, device=generator.device)
    return order[: math.ceil(fraction * samples)]
