"""Gymnasium's spaces as plain numbers and tensors, so that a policy acts without its task."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import Space, spaces

from rl_plugins.errors import UsageError


def spaces_record(observation: Space[Any], action: Space[Any]) -> dict[str, Any]:
    """Both spaces of a task; empty where one of them is of a kind that cannot be written down, as a
    third party's algorithm may know.

    Parameters
    ----------
    observation, action
        The spaces.
    """
    try:
        return {"observation": space_record(observation), "action": space_record(action)}
    except UsageError:
        return {}


def space_record(space: Space[Any]) -> dict[str, Any]:
    """A space in types that ``torch.load(weights_only=True)`` reads.

    Parameters
    ----------
    space
        Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of these.

    Raises
    ------
    UsageError
        For other spaces.
    """
    if isinstance(space, spaces.Dict):
        parts = [[key, space_record(part)] for key, part in space.spaces.items()]
        return {"kind": "Dict", "parts": parts}
    if isinstance(space, spaces.Tuple):
        return {"kind": "Tuple", "parts": [space_record(part) for part in space.spaces]}
    if isinstance(space, spaces.Box):
        bounds = {"low": _tensor(space.low), "high": _tensor(space.high)}
        return {"kind": "Box", "dtype": str(space.dtype), "shape": list(space.shape), **bounds}
    if isinstance(space, spaces.Discrete):
        record: dict[str, Any] = {"kind": "Discrete", "n": int(space.n), "start": int(space.start)}
    elif isinstance(space, spaces.MultiDiscrete):
        record = {"kind": "MultiDiscrete", "n": _tensor(space.nvec), "start": _tensor(space.start)}
    elif isinstance(space, spaces.MultiBinary):
        n = space.n if isinstance(space.n, int) else [int(size) for size in space.shape]
        return {"kind": "MultiBinary", "n": n}
    else:
        raise UsageError(f"spaces of type {type(space).__name__} are not supported")
    return {**record, "dtype": str(space.dtype)}


def space_of(record: dict[str, Any]) -> Space[Any]:
    """The space that :func:`space_record` wrote down.

    Parameters
    ----------
    record
        Its result.

    Raises
    ------
    UsageError
        Where it is none.
    """
    try:
        return _space(record)
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        AssertionError,
        ArithmeticError,
        RuntimeError,
        MemoryError,
    ) as error:
        raise UsageError(f"a checkpoint's spaces are damaged: {error}") from error


def _space(record: dict[str, Any]) -> Space[Any]:
    kind = record["kind"]
    if kind == "Dict":
        return spaces.Dict({key: _space(part) for key, part in record["parts"]})
    if kind == "Tuple":
        return spaces.Tuple([_space(part) for part in record["parts"]])
    if kind == "MultiBinary":
        return spaces.MultiBinary(record["n"])
    dtype: Any = np.dtype(record["dtype"])
    if kind == "Box":
        low, high = (record[name].numpy().astype(dtype) for name in ("low", "high"))
        return spaces.Box(low, high, tuple(record["shape"]), dtype)
    if kind == "Discrete":
        return spaces.Discrete(record["n"], start=record["start"], dtype=dtype)
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(
            record["n"].numpy(), start=record["start"].numpy(), dtype=dtype.type
        )
    raise ValueError(f"unknown kind {kind!r}")


def _tensor(array: Any) -> torch.Tensor:
    """float64 for floating point, else int64: exact for every bound that a space may have."""
    found = np.asarray(array)
    wide = np.float64 if np.issubdtype(found.dtype, np.floating) else np.int64
    return torch.from_numpy(found.astype(wide))
