"""What the training loop knows of an algorithm, where it finds one, and how it is configured."""

from __future__ import annotations

import dataclasses
import numbers
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from importlib.metadata import EntryPoint, entry_points
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

import numpy as np
import torch

from rl_plugins.errors import UsageError, suggestion
from rl_plugins.policies import Behaviour

if TYPE_CHECKING:
    from gymnasium import Space

ENTRY_POINTS = "rl_plugins"


class Plugin(Protocol):
    """An algorithm. Third parties register theirs in the entry-point group ``rl_plugins``.

    ``update`` gets a :class:`rl_plugins.data.Rollout`, whatever it ``collects``: "rollouts" are
    learnt from and forgotten, "transitions" go into a replay buffer first, so that their policy may
    be any. It returns a dataclass, whose fields are the columns of ``progress.csv``. ``Config`` is
    a dataclass, whose fields are the options of the command line: bool, int, float, str, None,
    Literal, Enum, Path, tuples, lists and dataclasses of these. ``behaviour`` says how the agent
    acts in so many environments, with its exploration or without;
    :class:`rl_plugins.policies.Sampling` is one for any module that returns a distribution.
    """

    collects: ClassVar[Literal["rollouts", "transitions"]]
    Config: ClassVar[type[Any]]
    config: Any

    @classmethod
    def build(
        cls,
        observation_space: Space[Any],
        action_space: Space[Any],
        config: Any,
        generator: torch.Generator,
    ) -> Plugin: ...

    def behaviour(self, environments: int, *, explore: bool) -> Behaviour: ...

    def update(self, batch: Any) -> Report: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Report(Protocol):
    """A dataclass of numbers and enums; ``summary`` is the part of a line worth watching."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def summary(self) -> str: ...


def registered_plugins() -> dict[str, EntryPoint]:
    """What the installed packages register, by name, in the order of the names."""
    found = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    return dict(sorted(found.items()))


def find_plugin(name: str) -> type[Plugin]:
    """The plugin class registered under ``name``. Raises :class:`UsageError` for an unknown one,
    and for one that cannot be imported or lacks a part of :class:`Plugin`."""
    found = registered_plugins()
    if name not in found:
        raise UsageError(f"unknown algorithm {name!r}; {suggestion(name, found)}")
    try:
        plugin: type[Plugin] = found[name].load()
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"the algorithm {name!r} cannot be loaded from {found[name].value!r}: {error}"
        ) from error
    parts = ("collects", "Config", "build", "behaviour", "update", "state_dict", "load_state_dict")
    if missing := [part for part in parts if not hasattr(plugin, part)]:
        raise UsageError(
            f"{found[name].value!r} is no plugin: it has no {', '.join(missing)}; "
            "see rl_plugins.plugin.Plugin"
        )
    if not dataclasses.is_dataclass(plugin.Config):
        raise UsageError(f"{found[name].value!r} is no plugin: its Config is not a dataclass")
    return plugin


ConfigType = TypeVar("ConfigType")


def configure(config: type[ConfigType], settings: Mapping[str, Any]) -> ConfigType:
    """A config dataclass from settings by name, each turned into its annotated type.

    Raises :class:`UsageError` for an unknown name and for a value of another type or out of range.
    """
    fields = _settable(config)
    for name in settings:
        if name not in fields:
            raise UsageError(
                f"unknown setting {name!r} of {config.__name__}; {suggestion(name, fields)}"
            )
    types_of = typing.get_type_hints(config)
    try:
        return config(
            **{name: _typed(name, value, types_of[name]) for name, value in settings.items()}
        )
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error


def settings_of(config: Any) -> dict[str, Any]:
    """The inverse of :func:`configure`: settings by name, such as JSON can hold."""
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
