"""A trained policy back from its run directory: to act, to be evaluated, to be exported."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gymnasium import Space

from rl_plugins.data.environments import make_environments
from rl_plugins.data.workers import close
from rl_plugins.errors import UsageError
from rl_plugins.plugin import Plugin
from rl_plugins.policies.space_records import space_of
from rl_plugins.runs.agent import Agent
from rl_plugins.runs.evaluation import Evaluation, evaluate
from rl_plugins.runs.recorded import (
    Recorded,
    Which,
    built,
    read_run,
    restore,
    task_of,
    trusted_checkpoint,
)
from rl_plugins.runs.threads import torch_threads


def trained(
    path: Path,
    which: Which = "last",
    *,
    task: Any = None,
    imports: Sequence[str] = (),
    accept_config: bool = False,
) -> tuple[Plugin, Recorded, Space[Any], Space[Any]]:
    """The agent of a checkpoint, its settings, and the spaces that it was trained in.

    The task itself is made only where the checkpoint does not hold its spaces.

    Parameters
    ----------
    path
        The run's directory.
    which
        See :func:`trusted_checkpoint`.
    task, imports
        See :func:`task_of` and :func:`read_run`.
    accept_config
        See :func:`trusted_checkpoint`.
    """
    recorded = read_run(path, imports=imports)
    checkpoint = trusted_checkpoint(recorded, which, accept_config=accept_config)
    spaces = checkpoint["spaces"]
    if spaces:
        observed, acted = (space_of(spaces.get(name, {})) for name in ("observation", "action"))
    else:
        environments = make_environments(task_of(recorded, task), 1)
        observed = environments.single_observation_space
        acted = environments.single_action_space
        close(environments)
    plugin = built(recorded.plugin, observed, acted, recorded.plan.config, torch.Generator())
    restore(plugin, checkpoint, path)
    return plugin, recorded, observed, acted


def load(
    run_dir: Path | str,
    *,
    checkpoint: Which = "last",
    imports: Sequence[str] = (),
    accept_config: bool = False,
) -> Agent:
    """The agent of a run: ``load(RUN_DIR).act(observation)``. The task need not be installed.

    Parameters
    ----------
    run_dir
        The run's directory.
    checkpoint
        "last", "best" (of the evaluations), or "interruption".
    imports
        Modules that the run's settings name, an optimizer's for instance, where you trust them.
    accept_config
        Load it also where ``config.json`` has been changed since.

    Raises
    ------
    UsageError
        Where there is no run, no such checkpoint, or one that is damaged.
    """
    plugin, _, observed, acted = trained(
        Path(run_dir), checkpoint, imports=imports, accept_config=accept_config
    )
    return Agent(plugin, observed, acted)


def evaluate_run(
    run_dir: Path | str,
    *,
    episodes: int = 20,
    checkpoint: Which = "last",
    task: Any = None,
    step_limit: int | None = None,
    imports: Sequence[str] = (),
    accept_config: bool = False,
) -> Evaluation:
    """Evaluate a checkpoint of a run, with the mode of its policy.

    Parameters
    ----------
    run_dir
        The run's directory.
    episodes
        Their number; more for a smaller error of the mean.
    checkpoint
        "last", "best" or "interruption".
    task
        Another task with the same spaces, or that of a run whose task was an object; None: the
        run's own.
    step_limit
        Steps after which an episode is cut; None: as in the run.
    imports, accept_config
        As in :func:`resume`.

    Raises
    ------
    UsageError
        Where there is no checkpoint, or its settings are not to be trusted: see :func:`resume`.
    """
    if episodes < 1:
        raise UsageError(f"episodes must be at least 1, got {episodes}")
    plugin, recorded, _, _ = trained(
        Path(run_dir), checkpoint, task=task, imports=imports, accept_config=accept_config
    )
    run = recorded.plan.run
    with torch_threads(run.threads):
        evaluation = evaluate(
            partial(plugin.behaviour, explore=False),
            task_of(recorded, task),
            episodes=episodes,
            seed=run.seed,
            backend=run.backend,
            step_limit=step_limit or run.evaluation_step_limit,
            patience=run.worker_timeout,
        )
    assert evaluation is not None  # only `stop` ends one early
    return evaluation


def export_run(
    run_dir: Path | str,
    out: Path | str,
    *,
    checkpoint: Which = "last",
    imports: Sequence[str] = (),
    accept_config: bool = False,
) -> list[str]:
    """Write the policy of a run as ONNX: see :func:`export_policy`. The task is not made.

    Parameters
    ----------
    run_dir
        The run's directory.
    out
        The file.
    checkpoint, imports, accept_config
        As in :func:`evaluate_run`.

    Returns
    -------
    list
        The names of its inputs.

    Raises
    ------
    UsageError
        Where there is no checkpoint, or nothing that can be exported.
    """
    plugin, _, observed, acted = trained(
        Path(run_dir), checkpoint, imports=imports, accept_config=accept_config
    )
    return Agent(plugin, observed, acted).export(out)
