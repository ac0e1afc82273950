"""A run directory read back: its settings, its agent, and what may be imported for it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from gymnasium import Space

from rl_plugins.data.task import Task, as_task
from rl_plugins.errors import UsageError, one_line
from rl_plugins.imports import import_all, is_qualified
from rl_plugins.plugin import Plugin, find_plugin
from rl_plugins.runs.checkpoint import (
    BEST,
    INTERRUPTION,
    LAST,
    config_digest,
    has_checkpoint,
    load_checkpoint,
)
from rl_plugins.runs.files import read_json
from rl_plugins.runs.settings import RunPlan, resolve
from rl_plugins.settings import settings_of

Which = Literal["last", "best", "interruption"]
FILES: Mapping[str, str] = {"last": LAST, "best": BEST, "interruption": INTERRUPTION}
# Wrappers without side effects, which are installed in any case.
OWN = ("gymnasium.wrappers", "rl_plugins.atari")


@dataclass(frozen=True)
class Recorded:
    """The settings of a run directory.

    Attributes
    ----------
    path
        The directory.
    plugin
        The class of its algorithm.
    plan
        All settings.
    config
        The content of ``config.json``.
    imports
        Modules that the caller trusts.
    """

    path: Path
    plugin: type[Plugin]
    plan: RunPlan
    config: dict[str, Any]
    imports: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Of the settings, as checkpoints carry it."""
        return config_digest(self.config)


def read_run(path: Path, *, imports: Sequence[str] = ()) -> Recorded:
    """The settings of a run, without a module imported that only its file names.

    Parameters
    ----------
    path
        The run's directory.
    imports
        Modules that the caller trusts; they are imported.

    Raises
    ------
    UsageError
        Where there is no run, or settings of its algorithm name a module that is not among
        ``imports``. Those of its task are asked for by :func:`task_of`.
    """
    config = read_json(path, "config.json")
    import_all(imports)
    try:
        plugin = find_plugin(config["algorithm"])
        plan = resolve(
            config["algorithm"], plugin, config["task"], {**config["run"], **config["config"]}
        )
        if not isinstance(config["task"], str):
            raise TypeError("the task is no name")
    except UsageError as error:
        raise UsageError(
            f"{path / 'config.json'} is of another version, or has been edited: {error}"
        ) from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(f"{path / 'config.json'} is damaged: it holds no run") from error
    _require_trusted(path, _named_by_algorithm(plan), imports)
    return Recorded(path, plugin, plan, config, tuple(imports))


def _named_by_algorithm(plan: RunPlan) -> list[str]:
    """The modules behind settings of the algorithm, an optimizer's for instance, wherever the file
    has put them: a setting counts in either of its tables."""
    defaults = {f.name: f.default for f in dataclasses.fields(plan.config)}
    return [
        value.partition(":")[0]
        for name, value in settings_of(plan.config).items()
        if isinstance(value, str) and is_qualified(value) and value != defaults.get(name)
    ]


def _named_by_task(plan: RunPlan, task: Any) -> list[str]:
    """The modules that making the task imports, apart from those that the caller's own needs."""
    names = [*plan.run.wrappers] if task is not None else [plan.task, *plan.run.wrappers]
    modules = [module for module, colon, _ in (name.partition(":") for name in names) if colon]
    return [*plan.run.imports, *modules]


def _require_trusted(path: Path, modules: Iterable[str], imports: Sequence[str]) -> None:
    """A file from a stranger may name any module, and an import runs its code.

    A package that is trusted is trusted with the modules in it.
    """
    trusted = {*OWN, *imports}
    missing = [
        module
        for module in dict.fromkeys(modules)
        if not any(module == each or module.startswith(f"{each}.") for each in trusted)
    ]
    if missing:
        names, options = ", ".join(map(repr, missing)), " --import ".join(missing)
        raise UsageError(
            f"{path / 'config.json'} names the module{'s'[: len(missing) - 1]} {names}, imported "
            f"only if you say so: --import {options}"
        )


def task_of(recorded: Recorded, task: Any) -> Task:
    """The task of a run.

    Parameters
    ----------
    recorded
        The run.
    task
        The caller's, for runs whose task was an object; None: by its recorded name.

    Raises
    ------
    UsageError
        Where the task was an object, and none is given, and where the settings name a module that
        the caller does not trust.
    """
    run = recorded.plan.run
    _require_trusted(recorded.path, _named_by_task(recorded.plan, task), recorded.imports)
    if task is None and recorded.config.get("object"):
        raise UsageError(
            f"the task of {recorded.path} was an object, {recorded.plan.task}, which a file cannot "
            "hold: pass it again, from Python, as task="
        )
    return as_task(
        recorded.plan.task if task is None else task,
        kwargs=run.env_kwargs or None,
        wrappers=run.wrappers,
        frame_stack=run.frame_stack,
    )


def shown_task(config: Mapping[str, Any]) -> str:
    """The task's name with what else made it another task: runs that differ in it are no seeds of
    one another.

    Parameters
    ----------
    config
        The content of a run's ``config.json``, whose task is a name.
    """
    run = config.get("run")
    run = run if isinstance(run, dict) else {}
    kwargs, wrappers = run.get("env_kwargs"), run.get("wrappers")
    parts = [f"{k}={v}" for k, v in kwargs.items()] if isinstance(kwargs, dict) else []
    parts += map(str, wrappers) if isinstance(wrappers, (list, tuple)) else []
    return f"{config['task']} ({', '.join(parts)})" if parts else str(config["task"])


def trusted_checkpoint(
    recorded: Recorded, which: Which = "last", *, accept_config: bool = False
) -> dict[str, Any]:
    """A checkpoint that belongs to the settings beside it.

    Parameters
    ----------
    recorded
        The run.
    which
        The last one that was planned, or an interruption's where there is none; that of the best
        evaluation; that of an interruption.
    accept_config
        Take it also where the settings have changed since.

    Raises
    ------
    UsageError
        Where there is none, or the settings have changed.
    """
    if which not in FILES:
        raise UsageError(f"checkpoint must be one of {', '.join(FILES)}, got {which!r}")
    checkpoint = _checkpoint(recorded.path, which)
    if not accept_config and recorded.digest not in checkpoint["configs"]:
        raise UsageError(
            f"{recorded.path / 'config.json'} has changed since the checkpoint was written; "
            "--accept-config, if it was you who changed it"
        )
    return checkpoint


def _checkpoint(path: Path, which: Which) -> dict[str, Any]:
    if which == "last" and not has_checkpoint(path) and (path / INTERRUPTION).exists():
        return load_checkpoint(path, INTERRUPTION)
    return load_checkpoint(path, FILES[which])


def built(
    plugin: type[Plugin],
    observed: Space[Any],
    acted: Space[Any],
    config: Any,
    generator: torch.Generator,
) -> Plugin:
    """An agent with fresh networks: see :meth:`rl_plugins.plugin.Plugin.build`.

    Parameters
    ----------
    plugin, observed, acted, config, generator
        The class of the algorithm, and what it is built from.

    Raises
    ------
    UsageError
        Where its networks do not fit into memory, besides what ``build`` refuses.
    """
    try:
        return plugin.build(observed, acted, config, generator)
    except (MemoryError, OverflowError, RuntimeError) as error:
        text = one_line(error)
        # torch has a plain RuntimeError for them.
        if isinstance(error, RuntimeError) and not re.search("memory|overflow|too large", text):
            raise
        raise UsageError(f"the networks do not fit into memory: {text[:200]}") from error


def restore(plugin: Plugin, checkpoint: Mapping[str, Any], path: Path) -> None:
    """Put a checkpoint's state into an agent that was built alike.

    Parameters
    ----------
    plugin, checkpoint
        The agent, and the checkpoint.
    path
        The run's directory, for the message.

    Raises
    ------
    UsageError
        Where it does not fit.
    """
    try:
        plugin.load_state_dict(checkpoint["agent"])
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"{path / 'checkpoint.pt'} does not fit config.json: it is of another run"
        ) from error


def with_steps(plan: RunPlan, total_steps: int) -> RunPlan:
    """The same settings for another number of steps.

    Parameters
    ----------
    plan, total_steps
        The settings, and the number.

    Raises
    ------
    UsageError
        Where it is out of range.
    """
    try:
        return replace(plan, run=replace(plan.run, total_steps=int(total_steps)))
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(str(error)) from error
