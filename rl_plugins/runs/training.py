"""Train an algorithm on a task into a run directory."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

import natgrad
from rl_plugins.data.task import as_task
from rl_plugins.imports import import_all, name_of
from rl_plugins.plugin import find_plugin
from rl_plugins.runs.checkpoint import config_digest
from rl_plugins.runs.job import Job, in_layout_of, run_job
from rl_plugins.runs.recorded import read_run, trusted_checkpoint
from rl_plugins.runs.run import Run
from rl_plugins.runs.settings import RunPlan, resolve
from rl_plugins.settings import settings_of


def train(
    algorithm: str,
    task: Any,
    *,
    run_dir: Path | str | None = None,
    console: Console | None = None,
    callbacks: Sequence[Any] = (),
    start_from: Path | str | None = None,
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
        A registered name, "module:Task-v0" to import its module first; a class, or a function that
        makes an environment; an environment, which is copied; or a vector environment, which is
        used as it is, its own number of copies.
    run_dir
        Must be empty or absent; None: a new directory below ``runs``.
    console
        Shows progress; None: silent.
    callbacks
        Objects with ``on_update`` or ``on_evaluation``: see :class:`rl_plugins.Callback`, and names
        of registered ones.
    start_from
        A run's directory, whose policy and critic this run starts from. The spaces and the networks
        must be alike; task, layout and settings may differ.
    **overrides
        Fields of :class:`RunSettings` (``total_steps``, ``seed``, …) and of the algorithm's
        ``Config`` (``max_kl``, …); the rest comes from the settings file's table of the task, then
        from the defaults. ``wrappers`` and ``body`` may be objects as well as names.

    Raises
    ------
    UsageError
        For an unknown algorithm, task or setting, an unsupported space, a task that breaks
        Gymnasium's interface, or a run directory that is not empty.
    ExperienceError
        Where an environment fails, or returns what no algorithm can learn from; the directory says
        then that the run failed.
    """
    plugin = find_plugin(algorithm)
    wrappers = tuple(overrides.pop("wrappers", ()))
    if callable(body := overrides.get("body")):
        overrides["body"] = name_of(body)
    names = [callback for callback in callbacks if isinstance(callback, str)]
    if names:
        overrides["callbacks"] = (*overrides.get("callbacks", ()), *names)
    by_name = all(isinstance(wrapper, str) for wrapper in wrappers)
    name = task if isinstance(task, str) else ""
    first = resolve(algorithm, plugin, name, {**overrides, "wrappers": wrappers if by_name else ()})
    import_all(first.run.imports)
    made = as_task(
        task,
        kwargs=first.run.env_kwargs or None,
        wrappers=wrappers,
        frame_stack=first.run.frame_stack,
    )
    plan = replace(first, task=made.name)
    if made.vector is not None:
        plan = in_layout_of(made, plan)
    config = _describe(plan)
    if not (made.is_named and by_name):
        config["object"] = True
    begin = None
    if start_from is not None:
        source = read_run(Path(start_from), imports=first.run.imports)
        begin = trusted_checkpoint(source)
        config["from"] = str(start_from)
    path = Path(run_dir) if run_dir is not None else _new_directory(plan)
    own = [callback for callback in callbacks if not isinstance(callback, str)]
    return run_job(
        Job(
            plugin,
            plan,
            made,
            path,
            console or Console(quiet=True),
            own,
            [config_digest(config)],
            config=config,
            start_from=begin,
        )
    )


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


def _new_directory(plan: RunPlan) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / (
        f"{plan.algorithm}-{re.sub('[^A-Za-z0-9_.-]', '-', plan.task)}-seed{plan.run.seed}-{stamp}"
    )
