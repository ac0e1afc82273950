"""The settings of a run: the loop's own, the algorithm's, and where each came from."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

from rl_plugins.errors import UsageError
from rl_plugins.plugin import Plugin
from rl_plugins.settings import configure, require_between, require_least

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class RunSettings:
    """Settings of the training loop."""

    total_steps: int = 100_000
    """Environment steps, all environments together."""
    seed: int = 0
    """Seed of the environments, the initial weights, the actions and the minibatches."""
    environments: int = 8
    """Copies of the task that are stepped together; more for speed."""
    rollout_length: int = 256
    """Steps of each copy between two updates; more for less noisy and fewer updates."""
    backend: Literal["sync", "async", "envpool"] = "sync"
    """Who steps the copies: Gymnasium in this process or, for slow tasks, in one each, or envpool
    if installed."""
    evaluations: int = 4
    """Evaluations during training, evenly spaced; the final one comes on top."""
    checkpoints: int = 4
    """Checkpoints during training, evenly spaced, each followed by new episodes."""
    evaluation_episodes: int = 20
    """Episodes of the final evaluation, with the mode of the policy; those before take 5."""
    threads: int = 1
    """Threads of torch; small networks are faster with one, image networks with more."""

    def __post_init__(self) -> None:
        require_least(self, 1, "total_steps", "environments", "rollout_length")
        require_least(self, 1, "evaluation_episodes", "threads")
        require_least(self, 0, "evaluations", "checkpoints")
        require_between(self, 0, 2**32 - 1, "seed")


@dataclass(frozen=True)
class RunPlan:
    """Everything that determines a run.

    Attributes
    ----------
    algorithm
        Its registered name.
    task
        The task's registered name.
    run
        Settings of the loop.
    config
        Settings of the algorithm, an instance of its ``Config``.
    tuned
        The settings file's entries for the task, by name.
    """

    algorithm: str
    task: str
    run: RunSettings
    config: Any
    tuned: Mapping[str, Any]


DEFAULT = "default"


def tuned_settings(algorithm: str) -> dict[str, dict[str, Any]]:
    """The settings file's entries for an algorithm, by task; empty where it has none.

    Parameters
    ----------
    algorithm
        Its registered name.
    """
    return {task: row for task, row in _settings_file(algorithm).items() if task != DEFAULT}


def _settings_file(algorithm: str) -> dict[str, dict[str, Any]]:
    text = files("rl_plugins.runs").joinpath("settings.toml").read_text(encoding="utf-8")
    return dict(tomllib.loads(text).get(algorithm, {}))


def resolve(
    algorithm: str, plugin: type[Plugin], task: str, overrides: Mapping[str, Any]
) -> RunPlan:
    """Defaults, then the settings file's default row and the task's, then ``overrides`` by name.

    Parameters
    ----------
    algorithm
        Its registered name.
    plugin
        Its class.
    task
        The task's registered name.
    overrides
        Settings of the loop and of the algorithm, by name.

    Raises
    ------
    UsageError
        For a name that neither the loop nor the algorithm has, one that both have, and a value of
        another type or out of range.
    """
    rows = _settings_file(algorithm)
    tuned = rows.get(task, {})
    merged = {**rows.get(DEFAULT, {}), **tuned, **overrides}
    run_names = {field.name for field in dataclasses.fields(RunSettings)}
    config_names = {field.name for field in dataclasses.fields(plugin.Config)}
    if clash := run_names & config_names:
        raise UsageError(f"{algorithm} redefines settings of the training loop: {sorted(clash)}")
    of_run = {name: value for name, value in merged.items() if name in run_names}
    of_config = {name: value for name, value in merged.items() if name not in run_names}
    run, config = configure(RunSettings, of_run), configure(plugin.Config, of_config)
    return RunPlan(algorithm, task, run, config, tuned)
