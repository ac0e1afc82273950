"""Train into a run directory; resume, evaluate and export from one."""

from __future__ import annotations

import platform
import re
from datetime import datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from gymnasium import Space
from rich.console import Console

import natgrad
from rl_plugins.data.collector import RolloutCollector
from rl_plugins.data.environments import make_environments
from rl_plugins.errors import UsageError
from rl_plugins.plugin import Plugin, find_plugin
from rl_plugins.runs.directory import RunDirectory, load_checkpoint, read_json
from rl_plugins.runs.evaluation import Evaluation, evaluate
from rl_plugins.runs.export import export_policy
from rl_plugins.runs.loop import Run, RunOutcome, TrainingLoop, torch_threads
from rl_plugins.runs.progress import ProgressDisplay
from rl_plugins.runs.settings import RunPlan, resolve
from rl_plugins.settings import settings_of


def train(
    algorithm: str,
    task: str,
    *,
    run_dir: Path | str | None = None,
    console: Console | None = None,
    **overrides: Any,
) -> Run:
    """Train an algorithm on a task into a run directory.

    Two runs with the same settings on one machine write the same ``progress.csv`` except for the
    columns whose names contain ``second``. Ctrl-C ends the run early, with a valid directory.

    Parameters
    ----------
    algorithm
        Its registered name: ``rl-plugins list`` shows all.
    task
        The task's registered name.
    run_dir
        Must be empty or absent; None: a new directory below ``runs``.
    console
        Shows progress; None: silent.
    **overrides
        Fields of :class:`RunSettings` (``total_steps``, ``seed``, …) and of the algorithm's
        ``Config`` (``max_kl``, …); the rest comes from the settings file's table of the task, then
        from the defaults.

    Raises
    ------
    UsageError
        For an unknown algorithm, task or setting, an unsupported space, or a run directory that is
        not empty.
    ExperienceError
        Where an environment returns a NaN or an infinity; the directory says then that the run
        failed.
    """
    plugin_class = find_plugin(algorithm)
    plan = resolve(algorithm, plugin_class, task, overrides)
    path = Path(run_dir) if run_dir is not None else _new_directory(plan)
    return _run(plugin_class, plan, path, console or Console(quiet=True), None)


def resume(run_dir: Path | str, *, console: Console | None = None) -> Run:
    """Go on with a run from its last checkpoint; rows written after it are written anew.

    A run that was killed and resumed writes what it would have written: checkpoints hold the
    networks, optimizers, normalisers, replay buffer and generator, and every checkpoint that a run
    makes on its way starts new episodes from a seed of its own, interrupted or not. After Ctrl-C,
    whose checkpoint is an extra one, it goes on as well, but not with the same numbers.

    Parameters
    ----------
    run_dir
        The run's directory.
    console
        Shows progress; None: silent.

    Raises
    ------
    UsageError
        Where the directory holds no checkpoint, or a run that has finished.
    """
    path = Path(run_dir)
    plugin_class, plan = _recorded(path)
    checkpoint = load_checkpoint(path)
    if (path / "outcome.json").exists() and read_json(path, "outcome.json").get(
        "outcome"
    ) == RunOutcome.FINISHED.name.lower():
        raise UsageError(f"the run in {path} has finished; train a new one with more --total-steps")
    return _run(plugin_class, plan, path, console or Console(quiet=True), checkpoint)


def _run(
    plugin_class: type[Plugin],
    plan: RunPlan,
    path: Path,
    console: Console,
    checkpoint: dict[str, Any] | None,
) -> Run:
    run, headline = plan.run, _headline(plan, checkpoint)
    generator = torch.Generator().manual_seed(run.seed)
    environments = make_environments(
        plan.task, run.environments, backend=run.backend, seed=run.seed
    )
    try:
        plugin = plugin_class.build(
            environments.single_observation_space,
            environments.single_action_space,
            plan.config,
            generator,
        )
        behaviour = plugin.behaviour(run.environments, explore=True)
        collector = RolloutCollector(environments, behaviour, seed=run.seed, generator=generator)
        if checkpoint is None:
            directory = RunDirectory.create(path, _describe(plan))
        else:
            _restore(plugin, checkpoint, path)
            directory = RunDirectory(path, after=checkpoint["steps"])
        with directory, ProgressDisplay(console, run.total_steps) as display:
            display.line(headline)
            loop = TrainingLoop(plan, plugin, collector, generator, directory, display)
            if checkpoint is not None:
                loop.restore(checkpoint)
            return loop.run()
    finally:
        environments.close()


def evaluate_run(run_dir: Path | str, *, episodes: int = 20) -> Evaluation:
    """Evaluate the last checkpoint of a run, with the mode of its policy.

    Parameters
    ----------
    run_dir
        The run's directory.
    episodes
        Their number; more for a smaller error of the mean.

    Raises
    ------
    UsageError
        Where there is no checkpoint.
    """
    if episodes < 1:
        raise UsageError(f"episodes must be at least 1, got {episodes}")
    plugin, plan, _ = _trained(Path(run_dir))
    behave, run = partial(plugin.behaviour, explore=False), plan.run
    with torch_threads(run.threads):
        evaluation = evaluate(
            behave, plan.task, episodes=episodes, seed=run.seed, backend=run.backend
        )
    assert evaluation is not None  # only `stop` ends one early
    return evaluation


def export_run(run_dir: Path | str, out: Path | str) -> list[str]:
    """Write the policy of a run's last checkpoint as ONNX: see :func:`export_policy`.

    Parameters
    ----------
    run_dir
        The run's directory.
    out
        The file.

    Returns
    -------
    list
        The names of its inputs.

    Raises
    ------
    UsageError
        Where there is no checkpoint, or nothing that can be exported.
    """
    plugin, _, space = _trained(Path(run_dir))
    to_environment = plugin.behaviour(1, explore=False).to_environment
    return export_policy(getattr(plugin, "policy", None), to_environment, space, Path(out))


def _trained(path: Path) -> tuple[Plugin, RunPlan, Space[Any]]:
    """The agent of the last checkpoint, its settings, and its observation space."""
    plugin_class, plan = _recorded(path)
    environments = make_environments(plan.task, 1, backend=plan.run.backend)
    try:
        observed, acted = environments.single_observation_space, environments.single_action_space
        plugin = plugin_class.build(observed, acted, plan.config, torch.Generator())
    finally:
        environments.close()
    _restore(plugin, load_checkpoint(path), path)
    return plugin, plan, observed


def _recorded(path: Path) -> tuple[type[Plugin], RunPlan]:
    """The algorithm and the settings of a run directory."""
    config = read_json(path, "config.json")
    try:
        plugin_class = find_plugin(config["algorithm"])
        overrides = {**config["run"], **config["config"]}
        plan = resolve(config["algorithm"], plugin_class, config["task"], overrides)
    except UsageError as error:
        raise UsageError(
            f"{path / 'config.json'} is of another version, or has been edited: {error}"
        ) from error
    except (KeyError, TypeError) as error:
        raise UsageError(f"{path / 'config.json'} is damaged: it holds no run") from error
    return plugin_class, plan


def _restore(plugin: Plugin, checkpoint: dict[str, Any], path: Path) -> None:
    try:
        plugin.load_state_dict(checkpoint["agent"])
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path / 'checkpoint.pt'} does not fit config.json: it is of another run"
        ) from error


def _describe(plan: RunPlan) -> dict[str, Any]:
    return {
        "algorithm": plan.algorithm,
        "task": plan.task,
        "tuned": bool(plan.tuned),
        "run": settings_of(plan.run),
        "config": settings_of(plan.config),
        "versions": {
            "natgrad": natgrad.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "gymnasium")},
        },
    }


def _headline(plan: RunPlan, checkpoint: dict[str, Any] | None) -> str:
    source = "default settings, none of its own for this task"
    if plan.tuned:
        source = f"settings for this task: {_in_effect(plan)}"
    return (
        f"{plan.algorithm} on {plan.task}, seed {plan.run.seed}, "
        f"{plan.run.total_steps:,} steps ({source})"
        + (f", from step {checkpoint['steps']:,} on" if checkpoint else "")
    )


def _in_effect(plan: RunPlan) -> str:
    """The task's settings that were not overridden."""
    used = {**settings_of(plan.run), **settings_of(plan.config)}
    kept = [f"{name} {value}" for name, value in plan.tuned.items() if used[name] == value]
    return ", ".join(kept) or "all overridden"


def _new_directory(plan: RunPlan) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / (
        f"{plan.algorithm}-{re.sub('[/:]', '-', plan.task)}-seed{plan.run.seed}-{stamp}"
    )
