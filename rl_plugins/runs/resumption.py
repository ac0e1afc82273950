"""Go on with a run, also for more steps than it was made for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from rl_plugins.errors import UsageError
from rl_plugins.runs.checkpoint import LAST, config_digest, has_checkpoint
from rl_plugins.runs.directory import RunDirectory
from rl_plugins.runs.files import read_json
from rl_plugins.runs.job import Job, in_layout_of, run_job
from rl_plugins.runs.recorded import (
    Recorded,
    Which,
    read_run,
    task_of,
    trusted_checkpoint,
    with_steps,
)
from rl_plugins.runs.run import Run, RunOutcome
from rl_plugins.runs.settings import RunPlan
from rl_plugins.runs.tables import read_rows
from rl_plugins.settings import settings_of


def resume(
    run_dir: Path | str,
    *,
    total_steps: int | None = None,
    task: Any = None,
    from_interruption: bool = False,
    accept_config: bool = False,
    imports: Sequence[str] = (),
    callbacks: Sequence[Any] = (),
    console: Console | None = None,
) -> Run:
    """Go on with a run from its last checkpoint; rows written after it are written anew.

    A run that was killed and resumed writes what it would have written: checkpoints hold the
    networks, optimizers, normalisers, replay buffer and generator, and every checkpoint that a run
    makes on its way starts new episodes from a seed of its own, interrupted or not. A run without a
    checkpoint begins again.

    Parameters
    ----------
    run_dir
        The run's directory.
    total_steps
        More steps than the run was made for, also where it has finished; None: as it was.
    task
        The task, for runs whose task was an object; None: by its recorded name.
    from_interruption
        Go on where a signal ended the run, not from the planned checkpoint before: no step is
        taken twice, but the numbers are not those of a run that was not interrupted.
    accept_config
        Go on also where ``config.json`` has been changed since the checkpoint was written.
    imports
        Modules to import first; those that the run's settings name must be among them.
    callbacks
        As in :func:`train`; objects are not recorded.
    console
        Shows progress; None: silent.

    Raises
    ------
    UsageError
        Where there is no run, it has finished, its settings were changed, its files are damaged, or
        they name a module that is not among ``imports``.
    """
    path = Path(run_dir)
    recorded = read_run(path, imports=imports)
    checkpoint = None
    if has_checkpoint(path) or from_interruption:
        which: Which = "interruption" if from_interruption else "last"
        checkpoint = trusted_checkpoint(recorded, which, accept_config=accept_config)
    elif recorded.config.get("from"):
        raise UsageError(f"the run in {path} ended before its first checkpoint; train it again")
    plan = recorded.plan
    if total_steps is not None:
        plan = with_steps(plan, total_steps)
    made = task_of(recorded, task)
    if made.vector is not None:
        plan = in_layout_of(made, plan)
    steps = checkpoint["steps"] if checkpoint else 0
    if steps >= plan.run.total_steps and (total_steps is not None or _has_finished(path)):
        raise UsageError(
            f"the run in {path} has finished, with {steps:,} steps; go on with --total-steps above "
            "these"
        )
    digests = [recorded.digest]
    if checkpoint is not None and plan.run.total_steps != recorded.plan.run.total_steps:
        digests = [_extend(recorded, plan, checkpoint)]
    return run_job(
        Job(
            recorded.plugin,
            plan,
            made,
            path,
            console or Console(quiet=True),
            callbacks,
            digests,
            checkpoint=checkpoint,
        )
    )


def _has_finished(path: Path) -> bool:
    if not (path / "outcome.json").exists():
        return False
    outcome = read_json(path, "outcome.json").get("outcome")
    return outcome in (RunOutcome.FINISHED.name.lower(), RunOutcome.STOPPED.name.lower())


def _extend(recorded: Recorded, plan: RunPlan, checkpoint: dict[str, Any]) -> str:
    """Write down the new number of steps; the digest of the settings then.

    The checkpoint first, as one that goes with the settings of before and of afterwards: a run that
    is killed between the two is the old one.
    """
    config = {**recorded.config, "run": settings_of(plan.run)}
    digest = config_digest(config)
    checkpoint["configs"] = [*checkpoint["configs"], digest]
    # The final evaluation was written after the checkpoint, and stays.
    checkpoint["evaluations"] = len(read_rows(recorded.path / "evaluations.csv"))
    directory = RunDirectory(
        recorded.path, after=checkpoint["steps"], evaluations=checkpoint["evaluations"]
    )
    with directory:
        directory.save_checkpoint(checkpoint, LAST)
        directory.write_json("config.json", config)
    return digest
