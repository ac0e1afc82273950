"""What the training loop knows of an algorithm, and where it finds one."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import torch
from gymnasium import Space

from rl_plugins.errors import UsageError, suggestion
from rl_plugins.policies import Policy

ENTRY_POINTS = "rl_plugins"


class Plugin(Protocol):
    """An algorithm. Third parties register theirs in the entry-point group ``rl_plugins``.

    ``policy`` maps observations to a torch Distribution: what the collector draws actions from and
    the evaluation takes the mode of. ``Config`` is a dataclass, whose fields are the options of
    the command line; ``update`` returns a dataclass, whose fields are the columns of
    ``progress.csv``.
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

    @property
    def policy(self) -> Policy: ...

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
    """The plugin class registered under ``name``. Raises :class:`UsageError` for an unknown one."""
    found = registered_plugins()
    if name not in found:
        raise UsageError(f"unknown algorithm {name!r}; {suggestion(name, found)}")
    plugin: type[Plugin] = found[name].load()
    return plugin


ConfigType = TypeVar("ConfigType")


def _typed(name: str, value: Any, default: Any) -> Any:
    """The value as the type of the setting's default, so that it also writes to JSON."""
    if isinstance(default, bool):
        if isinstance(value, bool):
            return value
    elif isinstance(default, int):
        if isinstance(value, numbers.Integral):
            return int(value)
    elif isinstance(default, float):
        if isinstance(value, numbers.Real):
            return float(value)
    elif isinstance(default, tuple):
        return tuple(_typed(name, element, default[0]) for element in value)
    elif isinstance(default, type(value)) or default is None:
        return value
    raise TypeError(f"{name} must be a {type(default).__name__}, got {value!r}")


def configure(config: type[ConfigType], settings: Mapping[str, Any]) -> ConfigType:
    """A config dataclass from settings by name. Raises :class:`UsageError` for an unknown name."""
    fields = {field.name: field for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    for name in settings:
        if name not in fields:
            raise UsageError(
                f"unknown setting {name!r} of {config.__name__}; {suggestion(name, fields)}"
            )
    try:
        return config(
            **{name: _typed(name, value, fields[name].default) for name, value in settings.items()}
        )
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
