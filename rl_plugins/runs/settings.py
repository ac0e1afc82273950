"""The settings of a run: the loop's own, the algorithm's, and where each came from."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Annotated, Any, Literal

import tyro

from rl_plugins.errors import UsageError
from rl_plugins.plugin import Plugin
from rl_plugins.settings import configure, require_between, require_least

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def _argument(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ValueError(f"expected NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


_ARGUMENTS = tyro.constructors.PrimitiveConstructorSpec(
    nargs="*",
    metavar="NAME=VALUE",
    instance_from_str=lambda texts: dict(map(_argument, texts)),
    is_instance=lambda value: isinstance(value, dict),
    str_from_instance=lambda value: [f"{k}={json.dumps(v)}" for k, v in value.items()],
)
_Modules = tyro.conf.UseAppendAction[tuple[str, ...]]


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
    checkpoints: int | None = None
    """Checkpoints during training, evenly spaced, each followed by new episodes. Unset: 4, or fewer
    where they would lie less than three of the task's step limits apart."""
    evaluation_episodes: int = 20
    """Episodes of the final evaluation, with the mode of the policy; those before take 5. 0: none
    at all."""
    evaluation_step_limit: int = 20_000
    """Steps after which an episode of an evaluation is cut, and said to be: some policies never end
    one."""
    record: bool = False
    """Film an episode at every evaluation: film-STEPS.mp4 in the run directory."""
    stop_return: float | None = None
    """End the run once an evaluation's mean return is at least this; unset: never."""
    stop_plateau: int | None = None
    """End the run after so many evaluations in a row without a new best one; unset: never."""
    stop_seconds: float | None = None
    """End the run after so many seconds, in good order; unset: never."""
    threads: int = 1
    """Threads of torch; small networks are faster with one, image networks with more."""
    worker_timeout: float = 300.0
    """Seconds that a step may take in another process, with --backend async, before the run ends;
    more for tasks that load something large."""
    env_kwargs: Annotated[dict[str, Any], _ARGUMENTS] = field(default_factory=dict)
    """Arguments of the task, NAME=VALUE …, each value JSON or text."""
    wrappers: Annotated[_Modules, tyro.conf.arg(name="wrapper", metavar="MODULE:CLASS")] = ()
    """A wrapper around each copy of the task; more than one: the first is innermost."""
    frame_stack: int = 1
    """Observations shown to the policy at once, the last ones; 4 for games seen as pictures."""
    callbacks: Annotated[_Modules, tyro.conf.arg(name="callback", metavar="NAME")] = ()
    """A callback that an installed package registers."""
    imports: Annotated[_Modules, tyro.conf.arg(name="import", metavar="MODULE")] = ()
    """A module that is imported first, for instance one that registers the task."""

    def __post_init__(self) -> None:
        require_least(self, 1, "total_steps", "environments", "rollout_length", "threads")
        require_least(self, 0, "evaluations", "evaluation_episodes")
        require_between(self, 1, 2**53, "total_steps")
        require_between(self, 1, 2**16, "environments")
        require_between(self, 1, 2**24, "rollout_length")
        require_between(self, 0, 2**20, "evaluation_episodes")
        require_between(self, 1, 2**31, "evaluation_step_limit")
        require_between(self, 1, 512, "threads")  # more, and OpenMP ends the process
        require_between(self, 0, 2**31, "evaluations")
        if self.checkpoints is not None:
            require_least(self, 0, "checkpoints")
        require_between(self, 0, 2**32 - 1, "seed")
        require_between(self, 1, 1024, "frame_stack")
        require_between(self, 1e-3, 1e9, "worker_timeout")
        if self.environments * self.rollout_length > MOST_TRANSITIONS:
            raise ValueError(
                f"environments × rollout_length must be at most {MOST_TRANSITIONS:,}, got "
                f"{self.environments:,} × {self.rollout_length:,}"
            )
        if self.stop_plateau is not None:
            require_least(self, 1, "stop_plateau")
        if self.stop_seconds is not None:
            require_least(self, 0, "stop_seconds", exclusive=True)


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
MOST_TRANSITIONS = 2**26


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
