"""Put a run together and run it: environments, agent, directory, loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from gymnasium import Space
from rich.console import Console

from rl_plugins.data.collector import RolloutCollector
from rl_plugins.data.environments import make_environments
from rl_plugins.data.task import Task
from rl_plugins.data.task_check import check_task
from rl_plugins.data.workers import close
from rl_plugins.errors import UsageError, one_line
from rl_plugins.plugin import Plugin
from rl_plugins.runs.agent import Agent
from rl_plugins.runs.callbacks import Callbacks
from rl_plugins.runs.directory import RunDirectory
from rl_plugins.runs.film import FilmEvaluations
from rl_plugins.runs.loop import TrainingLoop
from rl_plugins.runs.progress import ProgressDisplay
from rl_plugins.runs.recorded import built, restore
from rl_plugins.runs.run import Run
from rl_plugins.runs.schedule import Schedule
from rl_plugins.runs.settings import RunPlan
from rl_plugins.settings import settings_of


@dataclass(frozen=True)
class Job:
    """What is to be run.

    Attributes
    ----------
    plugin, plan
        The class of the algorithm, and all settings.
    task
        What the copies are made from.
    path
        The run's directory, as the caller named it.
    console
        Shows progress.
    callbacks
        The caller's own.
    digests
        Of the settings that the checkpoints go with.
    checkpoint
        What the run goes on from; None: it begins.
    config
        The content of ``config.json`` of a new run; None: it is there already.
    start_from
        A checkpoint of another run, whose policy this one begins with.
    """

    plugin: type[Plugin]
    plan: RunPlan
    task: Task
    path: Path
    console: Console
    callbacks: Sequence[Any]
    digests: list[str]
    checkpoint: dict[str, Any] | None = None
    config: dict[str, Any] | None = None
    start_from: dict[str, Any] | None = None


def run_job(job: Job) -> Run:
    """Run it to its end.

    Parameters
    ----------
    job
        What to run.
    """
    plan, run = job.plan, job.plan.run
    place = job.path.absolute()  # a task may change the working directory
    own = list(job.callbacks)
    if run.record:
        own.append(FilmEvaluations(job.task, run.seed, run.evaluation_step_limit))
    callbacks = Callbacks.of(run, own)
    generator = torch.Generator().manual_seed(run.seed)
    found = None
    if job.task.vector is None and run.backend != "envpool":
        found = check_task(job.task)
    environments = make_environments(
        job.task, run.environments, backend=run.backend, seed=run.seed, found=found
    )
    try:
        observed, acted = environments.single_observation_space, environments.single_action_space
        plugin = built(job.plugin, observed, acted, plan.config, generator)
        if job.start_from is not None:
            _start_from(plugin, job.start_from, observed, acted)
        collector = RolloutCollector(
            environments,
            plugin.behaviour(run.environments, explore=True),
            seed=run.seed,
            generator=generator,
            patience=run.worker_timeout,
        )
        if job.checkpoint is not None:
            restore(plugin, job.checkpoint, job.path)
        directory = _directory(job, place)
        with directory, ProgressDisplay(job.console, run.total_steps) as display:
            display.line(_headline(plan, job.checkpoint))
            if (features := getattr(getattr(plugin, "policy", None), "features", None)) is not None:
                display.line(f"observations: {features.describe()}")
            loop = TrainingLoop(
                plan,
                plugin,
                job.task,
                collector,
                Agent(plugin, observed, acted),
                generator,
                directory,
                display,
                schedule=Schedule(run, found.step_limit if found else None),
                callbacks=callbacks,
                configs=job.digests,
            )
            if job.checkpoint is not None:
                loop.restore(job.checkpoint)
            elif job.start_from is not None:
                loop.save()  # what it starts from may be gone when it is resumed
            return loop.run()
    finally:
        if job.task.vector is None:
            close(environments)


def _directory(job: Job, place: Path) -> RunDirectory:
    """A new one, or that of a run that goes on, or that was killed before its first checkpoint."""
    if job.config is not None:
        return RunDirectory.create(place, job.config, job.path)
    kept = job.checkpoint or {"steps": 0, "evaluations": 0}
    after, evaluations = kept["steps"], kept["evaluations"]
    return RunDirectory(place, after=after, evaluations=evaluations, shown=job.path)


def _start_from(
    plugin: Plugin, source: dict[str, Any], observed: Space[Any], acted: Space[Any]
) -> None:
    adopt = getattr(plugin, "start_from", plugin.load_state_dict)
    try:
        adopt(source["agent"])
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        text = one_line(error)[:200]
        raise UsageError(
            f"the run to start from has other networks than this one, for {observed} and {acted}: "
            f"{text}"
        ) from error


def in_layout_of(task: Task, plan: RunPlan) -> RunPlan:
    """The same number of steps an update, from the copies that a vector environment has.

    Parameters
    ----------
    task
        A task that is a vector environment.
    plan
        The settings.
    """
    assert task.vector is not None
    run, count = plan.run, task.vector.num_envs
    length = max(1, round(run.environments * run.rollout_length / count))
    return replace(plan, run=replace(run, environments=count, rollout_length=length))


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
