"""Gymnasium's spaces -> features, heads and action maps. No other module reads spaces."""

from __future__ import annotations

from typing import Any, Literal, TypeGuard

import numpy as np
import torch
from gymnasium import Space, spaces
from numpy.typing import NDArray

from rl_plugins.errors import UsageError
from rl_plugins.policies.action_maps import ActionMap, Bits, Pieces, Shift, Stretch
from rl_plugins.policies.heads import (
    BernoulliHead,
    CategoricalHead,
    GaussianHead,
    Head,
    JointHead,
    MultiCategoricalHead,
)
from rl_plugins.policies.observations import Features, Leaf, LeafKind

ActionBounds = Literal["clip", "tanh"]
Reading = Literal["auto", "image", "numbers"]
ACTION_MASK = "action_mask"
UNBOUNDED = 1e6
# Below this an array of bytes is a board or a row of registers, not a picture.
SMALLEST_IMAGE = 8
# A network divides an image by 255; codes on a board, which end below, would vanish.
BRIGHTEST = 255


def observation_features(
    space: Space[Any], *, normalise: bool, choices: int = 0, reading: Reading = "auto"
) -> Features:
    """Features of the observations of a space.

    Box (standardised numbers, or an image: see below), Discrete and MultiDiscrete (one-hot),
    MultiBinary, Dict and Tuple of them to any depth. A Box of uint8 up to 255 with two dimensions
    of at least 8 pixels, and at most one more for the channels, is an image; the channels are the
    smaller of its first and last dimension. With a further dimension in front it is a stack of
    images, whose channels are joined. An entry "action_mask" of a Dict, with one number for every
    choice, says which actions are valid.

    Parameters
    ----------
    space
        The observation space of one environment.
    normalise
        Standardise numbers by running moments.
    choices
        Entries of a mask that the policy's head understands: see :class:`Head`.
    reading
        "image": every Box of two to four dimensions is one, of any number type; "numbers": none is.

    Raises
    ------
    UsageError
        For other spaces, for one without entries, for a mask of another size, and where "image"
        finds none.
    """
    mask = None
    if isinstance(space, spaces.Dict) and ACTION_MASK in space.spaces:
        mask_space = space.spaces[ACTION_MASK]
        width = int(np.prod(mask_space.shape or ()))
        if not isinstance(mask_space, (spaces.Box, spaces.MultiBinary)) or width != choices:
            raise UsageError(
                f"the observation's {ACTION_MASK!r} is {mask_space}; expected a Box or MultiBinary "
                f"of {choices} entries, one for every choice of a discrete action"
            )
        mask = Leaf((ACTION_MASK,), LeafKind.BITS, (width,))
        space = spaces.Dict({k: v for k, v in space.spaces.items() if k != ACTION_MASK})
    features = Features(_leaves(space, (), reading), normalise, mask)
    if reading == "image" and not features.images:
        raise UsageError(f"observations image: {space} has no Box of two to four dimensions")
    if not features.width and not features.images:
        raise UsageError(f"the observations, {space}, have no entries; a constant would do")
    return features


def _leaves(space: Space[Any], path: tuple[str | int, ...], reading: Reading) -> list[Leaf]:
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        inside: Any = space.spaces
        parts = inside.items() if isinstance(space, spaces.Dict) else enumerate(inside)
        return [leaf for key, part in parts for leaf in _leaves(part, (*path, key), reading)]
    if isinstance(space, spaces.Discrete):
        start = torch.tensor([int(space.start)])
        return [Leaf(path, LeafKind.CATEGORIES, (int(space.n),), start)]
    if isinstance(space, spaces.MultiDiscrete):
        sizes = tuple(int(n) for n in space.nvec.flatten())
        start = torch.tensor([int(first) for first in space.start.flatten()])
        return [Leaf(path, LeafKind.CATEGORIES, sizes, start)]
    if isinstance(space, spaces.MultiBinary):
        return [Leaf(path, LeafKind.BITS, (int(np.prod(space.shape)),))]
    if isinstance(space, spaces.Box):
        image = None if reading == "numbers" else _image(space, path, told=reading == "image")
        return [image or Leaf(path, LeafKind.NUMBERS, (int(np.prod(space.shape)),))]
    raise UsageError(
        f"observations of type {type(space).__name__}{_at(path)} are not supported, only Box, "
        "Discrete, MultiDiscrete, MultiBinary, Dict and Tuple; wrap the task with "
        "gymnasium.wrappers.FlattenObservation or TransformObservation"
    )


def _image(space: spaces.Box, path: tuple[str | int, ...], *, told: bool) -> Leaf | None:
    shape = space.shape
    if not 2 <= len(shape) <= 4:
        return None
    one = shape[-3:]  # behind the dimension of a stack
    brightest = float(space.high.max())
    if not told:
        small = sorted(one)[-2] < SMALLEST_IMAGE
        if space.dtype != np.uint8 or small or brightest < BRIGHTEST:
            return None
    frames = shape[0] if len(shape) == 4 else 1
    # uint8 is divided by 255 in the network; others here, by the bound that their space names.
    own = space.dtype != np.uint8 and 1 < brightest < UNBOUNDED
    scale = 1 / brightest if own else 1.0
    if len(one) == 2:
        return Leaf(path, LeafKind.IMAGE, (1, *one), frames=frames, scale=scale)
    last = one[2] <= one[0]
    channels, *size = (one[2], *one[:2]) if last else one
    sizes = (frames * channels, *size)
    return Leaf(path, LeafKind.IMAGE, sizes, channels_last=last, frames=frames, scale=scale)


def action_head(space: Space[Any], *, initial_log_std: float) -> Head:
    """The head for an action space.

    Discrete, MultiDiscrete, MultiBinary, Box of floats, and Dict and Tuple of them to any depth.

    Parameters
    ----------
    space
        The action space of one environment.
    initial_log_std
        log σ of Gaussian actions at the start, in units of :func:`action_map`.

    Raises
    ------
    UsageError
        For other spaces.
    """
    return _head(space, (), initial_log_std)


def _head(space: Space[Any], path: tuple[str, ...], initial_log_std: float) -> Head:
    if isinstance(space, spaces.Discrete):
        return CategoricalHead(int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        return MultiCategoricalHead([int(n) for n in space.nvec.flatten()])
    if isinstance(space, spaces.MultiBinary):
        return BernoulliHead(int(np.prod(space.shape)))
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        parts = _components(space).items()
        if not parts:
            raise UsageError(f"the action {space}{_at(path)} has no components")
        return JointHead([_head(part, (*path, key), initial_log_std) for key, part in parts])
    return GaussianHead(_box_dimensions(space, path), initial_log_std)


def action_map(space: Space[Any], *, bounds: ActionBounds = "clip") -> ActionMap:
    """The map from policy actions (N, …) to the actions that a vector environment takes.

    Discrete and MultiDiscrete: shifted by ``start``. Box: each bounded dimension is clipped to ±1,
    or squashed by tanh, and stretched to its bounds, so that 0 is the middle and exploration noise
    has the scale of the range; an unbounded dimension passes through, a
    half-bounded one is clipped and starts from 0, or from its bound where that excludes 0.

    Parameters
    ----------
    space
        The action space of one environment.
    bounds
        How actions are kept within ±1. tanh is part of the task here, not of the distribution:
        ratios, KL and Fisher matrix are the same for u and tanh u, and no action near a bound has
        to be inverted. The entropy is that of u.

    Raises
    ------
    UsageError
        For a space that :func:`action_head` does not know.
    """
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return Shift(np.asarray(space.start).astype(np.int64), space.dtype)
    if isinstance(space, spaces.MultiBinary):
        return Bits(space.shape)
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        parts = _components(space)
        return Pieces(
            {key: action_map(part, bounds=bounds) for key, part in parts.items()},
            tuple(action_columns(part) for part in parts.values()),
            named=isinstance(space, spaces.Dict),
        )
    return _stretch(space, bounds)


def action_columns(space: Space[Any]) -> int:
    """Columns that a component takes in a joint action.

    Parameters
    ----------
    space
        The component's space.
    """
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        return sum(action_columns(part) for part in _components(space).values())
    return int(np.prod(space.shape or ()))


def _components(space: spaces.Dict | spaces.Tuple[Any]) -> dict[str, Space[Any]]:
    """By name, in the order of the space; a Tuple's by position."""
    if isinstance(space, spaces.Dict):
        return dict(space.spaces)
    return {str(index): part for index, part in enumerate(space.spaces)}


def _at(path: tuple[str | int, ...]) -> str:
    return f" at {'.'.join(map(str, path))}" if path else ""


def _stretch(space: Space[Any], bounds: ActionBounds) -> Stretch:
    _box_dimensions(space)
    assert isinstance(space, spaces.Box)
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    bounded = is_bounded(space)
    # Around the origin, or the bound next to it: far from a bound every draw would be clipped.
    origin = np.clip(0.0, low, high)
    least, most = np.where(bounded, low, origin - 1), np.where(bounded, high, origin + 1)
    middle, unit = (least + most) / 2, (most - least) / 2
    return Stretch(low, high, middle, unit, bounded, squash=bounds == "tanh", dtype=space.dtype)


def is_bounded(space: spaces.Box) -> NDArray[np.bool_]:
    """The dimensions that have two bounds to stretch an action to; ±3e38 are none.

    Parameters
    ----------
    space
        An action space.
    """
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    bounded: NDArray[np.bool_] = (low > -UNBOUNDED) & (high < UNBOUNDED)
    return bounded


def bounded_dimensions(space: Space[Any]) -> int:
    """The number of dimensions of a Box that is bounded in all of them.

    Parameters
    ----------
    space
        An action space.

    Raises
    ------
    UsageError
        For any other space.
    """
    if not _is_continuous(space) or not is_bounded(space).all():
        raise UsageError(
            f"deterministic policies need an action space with bounds, a Box of floats, got {space}"
            "; wrap the task with gymnasium.wrappers.TransformAction, or take a stochastic policy"
        )
    return _box_dimensions(space)


def _is_continuous(space: Space[Any]) -> TypeGuard[spaces.Box]:
    return isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating)


def _box_dimensions(space: Space[Any], path: tuple[str, ...] = ()) -> int:
    if not _is_continuous(space):
        raise UsageError(
            f"actions of type {space}{_at(path)} are not supported, only Discrete, MultiDiscrete, "
            "MultiBinary, Box of floats, and Dict and Tuple of these"
        )
    return int(np.prod(space.shape))
