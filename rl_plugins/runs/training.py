"""Train, go on, evaluate: what a run directory can be made from and used for."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from gymnasium import Space
from gymnasium.vector import VectorEnv
from rich.console import Console

import natgrad
from rl_plugins.data.collector import RolloutCollector
from rl_plugins.data.environments import make_environments
from rl_plugins.errors import UsageError
from rl_plugins.plugin import Plugin, find_plugin
from rl_plugins.runs.directory import RunDirectory, load_checkpoint, read_json
from rl_plugins.runs.evaluation import Evaluation, evaluate
from rl_plugins.runs.export import export_policy
from rl_plugins.runs.loop import Outcome, Run, TrainingLoop
from rl_plugins.runs.progress import ProgressDisplay
from rl_plugins.runs.settings import Settings, resolve
from rl_plugins.settings import settings_of


def train(
    algorithm: str,
    task: str,
    *,
    run_dir: Path | str | None = None,
    console: Console | None = None,
    **overrides: Any,
) -> Run:
    """Train ``algorithm`` on ``task`` into a run directory.

    ``overrides`` are fields of :class:`RunSettings` (``total_steps``, ``seed``, …) and of the
    algorithm's ``Config`` (``max_kl``, …); the rest comes from the settings file's table of the
    task, then from the defaults. ``run_dir`` defaults to a new directory below ``runs``.
    ``console`` shows progress; None is silent. Ctrl-C ends the run early, with a valid directory.

    Two runs with the same settings on one machine write the same ``progress.csv`` except for the
    columns whose names contain ``second``.

    Raises :class:`UsageError` for an unknown algorithm, task or setting, an unsupported space, or
    a run directory that is not empty; :class:`ExperienceError` where an environment returns a NaN
    or an infinity, after writing down that the run failed.
    """
    plugin_class = find_plugin(algorithm)
    settings = resolve(algorithm, plugin_class, task, overrides)
    path = Path(run_dir) if run_dir is not None else _new_directory(settings)
    return _run(plugin_class, settings, path, console or Console(quiet=True), None)


def resume(run_dir: Path | str, *, console: Console | None = None) -> Run:
    """Go on with a run from its last checkpoint; rows written after it are written anew.

    A run that was killed and resumed writes what it would have written: checkpoints hold the
    networks, optimizers, normalisers, replay buffer and generator, and every checkpoint that a run
    makes on its way starts new episodes from a seed of its own, interrupted or not. After Ctrl-C,
    whose checkpoint is an extra one, it goes on as well, but not with the same numbers.

    Raises :class:`UsageError` where the directory holds no checkpoint, or a run that has finished.
    """
    path = Path(run_dir)
    plugin_class, settings = _recorded(path)
    checkpoint = load_checkpoint(path)
    if (path / "outcome.json").exists() and read_json(path, "outcome.json").get(
        "outcome"
    ) == Outcome.FINISHED.name.lower():
        raise UsageError(f"the run in {path} has finished; train a new one with more --total-steps")
    return _run(plugin_class, settings, path, console or Console(quiet=True), checkpoint)


def _run(
    plugin_class: type[Plugin],
    settings: Settings,
    path: Path,
    console: Console,
    checkpoint: dict[str, Any] | None,
) -> Run:
    run = settings.run
    generator = torch.Generator().manual_seed(run.seed)
    environments = make_environments(
        settings.task, run.environments, backend=run.stepped_by, seed=run.seed
    )
    try:
        plugin = _build(plugin_class, environments, settings, generator)
        behaviour = plugin.behaviour(run.environments, explore=True)
        collector = RolloutCollector(environments, behaviour, seed=run.seed, generator=generator)
        if checkpoint is None:
            directory = RunDirectory.create(path, _describe(settings))
        else:
            _restore(plugin, checkpoint, path)
            directory = RunDirectory(path, after=checkpoint["steps"])
        with (
            _torch_threads(run.threads),
            directory,
            ProgressDisplay(console, run.total_steps) as display,
        ):
            display.line(_headline(settings, checkpoint))
            training = TrainingLoop(settings, plugin, collector, generator, directory, display)
            if checkpoint is not None:
                training.restore(checkpoint)
            return training.run()
    finally:
        environments.close()


def evaluate_run(run_dir: Path | str, *, episodes: int = 20) -> Evaluation:
    """Evaluate the last checkpoint of a run. Raises :class:`UsageError` where there is none."""
    if episodes < 1:
        raise UsageError(f"episodes must be at least 1, got {episodes}")
    plugin, settings, _ = _trained(Path(run_dir))
    with _torch_threads(settings.run.threads):
        evaluation = evaluate(
            partial(plugin.behaviour, explore=False), settings.task,
            episodes=episodes, seed=settings.run.seed,
            backend=settings.run.stepped_by,
        )  # fmt: skip
    assert evaluation is not None  # nothing could stop it
    return evaluation


def export_run(run_dir: Path | str, out: Path | str) -> list[str]:
    """Write the policy of a run's last checkpoint as ONNX: see :func:`export_policy`.

    Raises :class:`UsageError` where there is no checkpoint, or nothing that can be exported.
    """
    plugin, _, space = _trained(Path(run_dir))
    to_environment = plugin.behaviour(1, explore=False).to_environment
    return export_policy(getattr(plugin, "policy", None), to_environment, space, Path(out))


def _trained(path: Path) -> tuple[Plugin, Settings, Space[Any]]:
    """The agent of the last checkpoint, its settings, the space of what it observes."""
    plugin_class, settings = _recorded(path)
    environments = make_environments(settings.task, 1, backend=settings.run.stepped_by)
    try:
        plugin = _build(plugin_class, environments, settings, torch.Generator())
    finally:
        environments.close()
    _restore(plugin, load_checkpoint(path), path)
    return plugin, settings, environments.single_observation_space


def _recorded(path: Path) -> tuple[type[Plugin], Settings]:
    """The algorithm and the settings of a run directory."""
    config = read_json(path, "config.json")
    try:
        plugin_class = find_plugin(config["algorithm"])
        overrides = {**config["run"], **config["config"]}
        settings = resolve(config["algorithm"], plugin_class, config["task"], overrides)
    except UsageError as error:
        raise UsageError(
            f"{path / 'config.json'} is of another version, or has been edited: {error}"
        ) from error
    except (KeyError, TypeError) as error:
        raise UsageError(f"{path / 'config.json'} is damaged: it holds no run") from error
    return plugin_class, settings


def _restore(plugin: Plugin, checkpoint: dict[str, Any], path: Path) -> None:
    try:
        plugin.load_state_dict(checkpoint["agent"])
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path / 'checkpoint.pt'} does not fit config.json: it is of another run"
        ) from error


def _build(
    plugin_class: type[Plugin],
    environments: VectorEnv,
    settings: Settings,
    generator: torch.Generator,
) -> Plugin:
    return plugin_class.build(
        environments.single_observation_space,
        environments.single_action_space,
        settings.config,
        generator,
    )


def _describe(settings: Settings) -> dict[str, Any]:
    return {
        "algorithm": settings.algorithm,
        "task": settings.task,
        "tuned": bool(settings.tuned),
        "run": settings_of(settings.run),
        "config": settings_of(settings.config),
        "versions": {
            "natgrad": natgrad.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "gymnasium")},
        },
    }


def _headline(settings: Settings, checkpoint: dict[str, Any] | None) -> str:
    source = "default settings, none of its own for this task"
    if settings.tuned:
        source = f"settings for this task: {_in_effect(settings)}"
    return (
        f"{settings.algorithm} on {settings.task}, seed {settings.run.seed}, "
        f"{settings.run.total_steps:,} steps ({source})"
        + (f", from step {checkpoint['steps']:,} on" if checkpoint else "")
    )


def _in_effect(settings: Settings) -> str:
    """The task's settings that were not overridden."""
    used = {**settings_of(settings.run), **settings_of(settings.config)}
    kept = [f"{name} {value}" for name, value in settings.tuned.items() if used[name] == value]
    return ", ".join(kept) or "all overridden"


def _new_directory(settings: Settings) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / (
        f"{settings.algorithm}-{re.sub('[/:]', '-', settings.task)}-seed{settings.run.seed}-{stamp}"
    )


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
