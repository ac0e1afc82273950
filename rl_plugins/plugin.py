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

    Attributes
    ----------
    Config
        A dataclass of settings, whose fields are the options of the command line: bool, int, float,
        str, None, Literal, Enum, Path, tuples, lists and dataclasses of these.
    config
        The settings that the agent was built from.
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
    ) -> Plugin:
        """The agent for a task's spaces, untrained.

        Parameters
        ----------
        observation_space, action_space
            The spaces of one environment.
        config
            An instance of ``Config``.
        generator
            Source of all randomness; the training loop saves it.
        """

    def behaviour(self, environments: int, *, explore: bool) -> Behaviour:
        """How the agent acts; :class:`rl_plugins.policies.Sampling` is one for any module that
        returns a distribution.

        Parameters
        ----------
        environments
            Their number.
        explore
            To learn; False: to be evaluated.
        """

    def update(self, batch: Any) -> Report:
        """Learn from a rollout.

        Parameters
        ----------
        batch
            A :class:`rl_plugins.data.Rollout` of the behaviour that explores.
        """

    def state_dict(self) -> dict[str, Any]:
        """All state but the generator's: tensors, numbers, strings, and containers of these.

        An algorithm may also have ``start_from(state)``, which takes of another run's state what a
        new run is to begin with; without it ``load_state_dict`` does that.
        """

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state.

        Parameters
        ----------
        state
            From :meth:`state_dict` of an agent that was built alike.
        """


class Report(Protocol):
    """A dataclass of numbers and enums, whose fields are the columns of ``progress.csv``."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def summary(self) -> str:
        """The numbers to watch during a run, for its progress line."""


def registered_plugins() -> dict[str, EntryPoint]:
    """The entry points of the installed packages, by name, in the order of the names."""
    found = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    return dict(sorted(found.items()))


def find_plugin(name: str) -> type[Plugin]:
    """The plugin class registered under a name.

    Parameters
    ----------
    name
        The name of an algorithm: see :func:`registered_plugins`.

    Raises
    ------
    UsageError
        For an unknown one, and for one that cannot be imported or lacks a part of :class:`Plugin`.
    """
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
