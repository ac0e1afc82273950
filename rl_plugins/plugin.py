"""The interface between the training loop and an algorithm, and how the loop finds one by name."""

from __future__ import annotations

import dataclasses
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch

from rl_plugins.errors import UsageError, suggestion
from rl_plugins.policies import Behaviour

if TYPE_CHECKING:
    from gymnasium import Space

ENTRY_POINTS = "rl_plugins"


class Plugin(Protocol):
    """An algorithm. Third parties register theirs in the entry-point group ``rl_plugins``.

    ``update`` gets a :class:`rl_plugins.data.Rollout` and returns a dataclass, whose fields are the
    columns of ``progress.csv``. ``Config`` is a dataclass, whose fields are the options of the
    command line: bool, int, float, str, None, Literal, Enum, Path, tuples, lists and dataclasses of
    these. ``behaviour`` says how the agent acts in a number of environments, with exploration or
    without; :class:`rl_plugins.policies.Sampling` is one for any module that returns a
    distribution.
    """

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
    parts = ("Config", "build", "behaviour", "update", "state_dict", "load_state_dict")
    if missing := [part for part in parts if not hasattr(plugin, part)]:
        raise UsageError(
            f"{found[name].value!r} is no plugin: it has no {', '.join(missing)}; "
            "see rl_plugins.plugin.Plugin"
        )
    if not dataclasses.is_dataclass(plugin.Config):
        raise UsageError(f"{found[name].value!r} is no plugin: its Config is not a dataclass")
    return plugin
