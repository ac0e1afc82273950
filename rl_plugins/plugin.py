"""What the training loop knows of an algorithm, where it finds one, and how it is configured."""

from __future__ import annotations

import dataclasses
import numbers
import types
import typing
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

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
    a dataclass, whose fields are the options of the command line. ``behaviour`` says how the agent
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
    return plugin


ConfigType = TypeVar("ConfigType")


def configure(config: type[ConfigType], settings: Mapping[str, Any]) -> ConfigType:
    """A config dataclass from settings by name, each turned into its annotated type.

    Raises :class:`UsageError` for an unknown name and for a value of another type or out of range.
    """
    fields = {field.name: field for field in dataclasses.fields(config)}  # type: ignore[arg-type]
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


def _typed(name: str, value: Any, wanted: Any) -> Any:
    """The value as the type of the setting, so that it also writes to JSON and back."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if wanted is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        for argument in arguments:
            try:
                return _typed(name, value, argument)
            except TypeError:  # noqa: PERF203
                continue
    elif origin is Literal:
        if value in arguments:
            return value
        choices = ", ".join(map(repr, arguments))
        raise TypeError(f"{name} must be one of {choices}, got {value!r}")
    elif origin in (tuple, list):
        if isinstance(value, Sequence) and not isinstance(value, str):
            element = arguments[0] if arguments else Any
            return origin(_typed(name, part, element) for part in value)
    elif wanted is bool or isinstance(value, bool):
        if wanted is bool and isinstance(value, bool):
            return value
    elif wanted is int:
        if isinstance(value, numbers.Integral):
            return int(value)
    elif wanted is float:
        if isinstance(value, numbers.Real):
            return float(value)
    elif isinstance(wanted, type) and isinstance(value, wanted):
        return value
    shown = wanted.__name__ if isinstance(wanted, type) and not arguments else wanted
    raise TypeError(f"{name} must be a {shown}, got {value!r}")
