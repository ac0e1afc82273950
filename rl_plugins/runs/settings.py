"""What a run is made of: the loop's own settings, the algorithm's, and where each came from."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

from rl_plugins.data.environments import Backend
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
    """Copies of the task that are stepped together."""
    rollout_length: int = 256
    """Steps of each copy between two updates."""
    backend: Literal["sync", "async", "envpool"] = "sync"
    """Who steps the copies: Gymnasium in this process or in one each, or envpool if installed."""
    evaluations: int = 4
    """Evaluations during training, evenly spaced; the final one comes on top."""
    checkpoints: int = 4
    """Checkpoints during training, evenly spaced, each followed by new episodes."""
    evaluation_episodes: int = 20
    """Episodes of the final evaluation, with the mode of the policy; those before take 5."""
    threads: int = 1
    """Threads of torch; small networks are faster with one."""

    def __post_init__(self) -> None:
        require_least(self, 1, "total_steps", "environments", "rollout_length")
        require_least(self, 1, "evaluation_episodes", "threads")
        require_least(self, 0, "evaluations", "checkpoints")
        require_between(self, 0, 2**32 - 1, "seed")

    @property
    def stepped_by(self) -> Backend:
        """The ``backend``, as what it names."""
        return Backend[self.backend.upper()]


@dataclass(frozen=True)
class Settings:
    """Everything that determines a run; ``tuned`` is what the settings file has for the task."""

    algorithm: str
    task: str
    run: RunSettings
    config: Any
    tuned: Mapping[str, Any]


DEFAULT = "default"


def tuned_settings(algorithm: str) -> dict[str, dict[str, Any]]:
    """The settings file's entries for an algorithm, by task; empty where it has none."""
    return {task: row for task, row in _settings_file(algorithm).items() if task != DEFAULT}


def _settings_file(algorithm: str) -> dict[str, dict[str, Any]]:
    text = files("rl_plugins.runs").joinpath("settings.toml").read_text(encoding="utf-8")
    return dict(tomllib.loads(text).get(algorithm, {}))


def resolve(
    algorithm: str, plugin: type[Plugin], task: str, overrides: Mapping[str, Any]
) -> Settings:
    """Defaults, then the settings file's default row and the task's, then ``overrides`` by name.

    Raises :class:`UsageError` for a name that neither the loop nor the algorithm has.
    """
    rows = _settings_file(algorithm)
    tuned = rows.get(task, {})
    merged = {**rows.get(DEFAULT, {}), **tuned, **overrides}
    run_names = {field.name for field in dataclasses.fields(RunSettings)}
    config_names = {field.name for field in dataclasses.fields(plugin.Config)}
    if clash := run_names & config_names:
        raise UsageError(f"{algorithm} redefines settings of the training loop: {sorted(clash)}")
    run = configure(RunSettings, {k: v for k, v in merged.items() if k in run_names})
    config: Any = configure(plugin.Config, {k: v for k, v in merged.items() if k not in run_names})
    return Settings(algorithm, task, run, config, tuned)
