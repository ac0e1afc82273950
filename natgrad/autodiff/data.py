"""Samples of a forward function's data: a tensor, or mappings, lists and tuples of tensors.

Dimension 0 of every tensor counts the samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def length(data: Any) -> int:
    """Count the samples.

    Raises ``TypeError`` for data of another kind, ``ValueError`` if tensors differ in length or
    have no dimension.
    """
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
    """Select the samples ``index`` from every tensor, keeping lists, tuples and mappings.

    Mappings come back as ``dict``; a slice gives views, a tensor of indices copies.
    """
    if isinstance(data, Tensor):
        return data[index.to(data.device) if isinstance(index, Tensor) else index]
    if isinstance(data, Mapping):
        return {key: take(value, index) for key, value in data.items()}
    parts = [take(value, index) for value in data]
    if hasattr(data, "_fields"):  # named tuples take their fields one by one
        return type(data)(*parts)
    return type(data)(parts)


def subset(samples: int, fraction: float, generator: torch.Generator | None) -> Tensor:
    """Draw the indices of ⌈``fraction`` · ``samples``⌉ samples, without replacement.

    Raises ``ValueError`` for a fraction outside (0, 1], or without a generator: the caller must be
    able to repeat the draw.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction}")
    if generator is None:
        raise ValueError("fraction below 1 needs generator=torch.Generator().manual_seed(...)")
    order = torch.randperm(samples, generator=generator, device=generator.device)
    return order[: math.ceil(fraction * samples)]
