"""Settings as frozen dataclasses: made from names and values, checked, and written back."""

from __future__ import annotations

import dataclasses
import math
import numbers
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import PurePath
from typing import Any, Literal, TypeVar

import numpy as np

from rl_plugins.errors import UsageError, suggestion


class Settings:
    """A base for frozen dataclasses of settings that check themselves.

    Subclasses check their own fields in ``__post_init__`` and call ``super().__post_init__()``, so
    that a dataclass of several bases checks all of them.
    """

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for a value out of range."""


SettingsType = TypeVar("SettingsType")


def configure(kind: type[SettingsType], settings: Mapping[str, Any]) -> SettingsType:
    """A dataclass of settings from values by name, each turned into its annotated type.

    Parameters
    ----------
    kind
        The dataclass.
    settings
        Values by name, as Python or JSON has them; the others keep their defaults.

    Raises
    ------
    UsageError
        For an unknown name, and for a value of another type or out of range.
    """
    fields = _settable(kind)
    for name in settings:
        if name not in fields:
            raise UsageError(
                f"unknown setting {name!r} of {kind.__name__}; {suggestion(name, fields)}"
            )
    types_of = typing.get_type_hints(kind)
    try:
        return kind(
            **{name: _typed(name, value, types_of[name]) for name, value in settings.items()}
        )
    except (TypeError, ValueError, OverflowError) as error:  # an int that no float can hold
        raise UsageError(str(error)) from error


def part_of(config: Any, kind: type[Any]) -> dict[str, Any]:
    """Those settings of a config, by name, that another dataclass has too.

    Parameters
    ----------
    config
        An instance of a dataclass that has all fields of ``kind``.
    kind
        The other dataclass.
    """
    return {name: getattr(config, name) for name in _settable(kind)}


def settings_of(config: Any) -> dict[str, Any]:
    """The inverse of :func:`configure`: settings by name, in types that JSON has.

    Parameters
    ----------
    config
        An instance of a dataclass.
    """
    return {name: _plain(getattr(config, name)) for name in _settable(type(config))}


def _settable(config: type[Any]) -> list[str]:
    return [field.name for field in dataclasses.fields(config) if field.init]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return settings_of(value)
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, PurePath):
        return str(value)
    return [_plain(part) for part in value] if isinstance(value, (tuple, list)) else value


def _typed(name: str, value: Any, wanted: Any) -> Any:
    """The value as the type of the setting, so that it also writes to JSON and back."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if wanted is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        for argument in arguments:
            try:
                return _typed(name, value, argument)
            except (TypeError, UsageError):  # noqa: PERF203
                continue
    elif origin is Literal:
        if value in arguments:
            return value
        choices = ", ".join(map(repr, arguments))
        raise TypeError(f"{name} must be one of {choices}, got {value!r}")
    elif (make := origin or wanted) in (tuple, list):
        if isinstance(value, Sequence) and not isinstance(value, str):
            types_of = arguments
            if make is list or not arguments or Ellipsis in arguments:
                types_of = (arguments[:1] or (Any,)) * len(value)
            if len(types_of) == len(value):
                return make(_typed(name, *pair) for pair in zip(value, types_of, strict=True))
    elif origin is dict:
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return dict(value)
    elif wanted is bool or isinstance(value, bool):
        if wanted is bool and isinstance(value, (bool, np.bool_)):
            return bool(value)
    elif wanted is int:
        if isinstance(value, numbers.Integral):
            return int(value)
    elif wanted is float:
        if isinstance(value, numbers.Real):
            return float(value)
    elif isinstance(wanted, type) and isinstance(value, wanted):
        return value
    elif dataclasses.is_dataclass(wanted) and isinstance(value, Mapping):
        return configure(wanted, value)  # type: ignore[arg-type]
    elif isinstance(wanted, type) and isinstance(value, str):
        if issubclass(wanted, PurePath):
            return wanted(value)
        if issubclass(wanted, Enum) and value in wanted.__members__:
            return wanted[value]
    shown = wanted.__name__ if isinstance(wanted, type) and not arguments else wanted
    raise TypeError(f"{name} must be a {shown}, got {value!r}")


def require_least(settings: Any, least: float, *names: str, exclusive: bool = False) -> None:
    """Require that settings are finite and not too small.

    Parameters
    ----------
    settings
        An instance of a dataclass.
    least
        The bound.
    *names
        Fields that are numbers.
    exclusive
        Require more than the bound.

    Raises
    ------
    ValueError
        Otherwise.
    """
    for name in names:
        value = getattr(settings, name)
        if not math.isfinite(value) or value < least or (exclusive and value == least):
            relation = "above" if exclusive else "at least"
            raise ValueError(f"{name} must be {relation} {least}, got {value}")


def require_sizes(settings: Any, name: str) -> None:
    """Require that every width is at least 1.

    Parameters
    ----------
    settings
        An instance of a dataclass.
    name
        A field that is a sequence of widths.

    Raises
    ------
    ValueError
        Otherwise.
    """
    sizes = getattr(settings, name)
    if any(size < 1 for size in sizes):
        raise ValueError(f"{name} must be at least 1, got {sizes}")


def require_between(settings: Any, low: float, high: float, *names: str) -> None:
    """Require that settings lie in an interval.

    Parameters
    ----------
    settings
        An instance of a dataclass.
    low, high
        Its ends, which belong to it.
    *names
        Fields that are numbers.

    Raises
    ------
    ValueError
        Otherwise.
    """
    for name in names:
        value = getattr(settings, name)
        if not low <= value <= high:
            raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {value}")


def require_one_of(settings: Any, name: str, *choices: str) -> None:
    """Require that a setting is one of several.

    Parameters
    ----------
    settings
        An instance of a dataclass.
    name
        The field.
    *choices
        Its values.

    Raises
    ------
    ValueError
        Otherwise.
    """
    value = getattr(settings, name)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
