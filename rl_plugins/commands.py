"""The commands of ``rl-plugins`` and their options; :mod:`rl_plugins.cli` runs them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

Modules = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(name="import", metavar="MODULE")
]
RunDirectory = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_DIR")]
Which = Literal["last", "best", "interruption"]


@dataclass(frozen=True)
class Train:
    """Train an algorithm on a Gymnasium task; its options follow the two names, and --help after
    these shows all of them."""

    algorithm: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ALGORITHM")]
    """Name of an algorithm: see `rl-plugins list`."""
    task: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TASK")]
    """Name of a Gymnasium task, such as CartPole-v1, or module:Task-v0 to import a module that
    registers it."""


@dataclass(frozen=True)
class Resume:
    """Go on with a run from its last checkpoint, also for more steps than it was made for."""

    run_dir: RunDirectory
    """Directory of a run."""
    total_steps: int | None = None
    """More environment steps than before; unset: as many as the run was made for."""
    from_interruption: bool = False
    """Go on where a signal ended the run, not from the planned checkpoint before it."""
    accept_config: bool = False
    """Go on although config.json was changed since the checkpoint."""
    imports: Modules = ()
    """A module that the run needs, and that you trust."""


@dataclass(frozen=True)
class Evaluate:
    """Play episodes with the mode of a trained policy."""

    run_dir: RunDirectory
    """Directory of a run."""
    episodes: int = 20
    """Episodes to play."""
    json: bool = False
    """Print one JSON object instead of a sentence."""
    checkpoint: Which = "last"
    """The last one, or that of the best evaluation."""
    task: str | None = None
    """Another task with the same spaces; unset: the run's own."""
    step_limit: int | None = None
    """Steps after which an episode is cut; unset: as in the run."""
    accept_config: bool = False
    """Evaluate although config.json was changed since the checkpoint."""
    imports: Modules = ()
    """A module that the run needs, and that you trust."""


@dataclass(frozen=True)
class Watch:
    """Show a trained policy at its task, in a window or as a film."""

    run_dir: RunDirectory
    """Directory of a run."""
    out: Path | None = None
    """A file to write instead of a window: film.mp4 or film.gif."""
    episodes: int = 1
    """Episodes to show."""
    checkpoint: Which = "last"
    """The last one, or that of the best evaluation."""
    seed: int = 0
    """Seed of the episodes."""
    step_limit: int = 2_000
    """Steps after which an episode is cut."""
    accept_config: bool = False
    """Show it although config.json was changed since the checkpoint."""
    imports: Modules = ()
    """A module that the run needs, and that you trust."""


@dataclass(frozen=True)
class Plot:
    """Draw the learning curves of runs; runs of one algorithm on one task become one curve."""

    run_dirs: tyro.conf.Positional[tuple[Path, ...]]
    """Directories of runs."""
    out: Path = Path("curve.png")
    """The picture."""


@dataclass(frozen=True)
class Compare:
    """A table of runs by task and algorithm: interquartile means over seeds with bootstrap
    intervals; and their curves, a panel a task."""

    run_dirs: tyro.conf.Positional[tuple[Path, ...]]
    """Directories of runs."""
    out: Path | None = None
    """A picture of the curves; unset: the table alone."""


@dataclass(frozen=True)
class Export:
    """Write a trained policy as one ONNX file: observations of the task in, its actions out."""

    run_dir: RunDirectory
    """Directory of a run."""
    out: tyro.conf.Positional[Path]
    """The file, such as policy.onnx."""
    checkpoint: Which = "last"
    """The last one, or that of the best evaluation."""
    accept_config: bool = False
    """Export although config.json was changed since the checkpoint."""
    imports: Modules = ()
    """A module that the run needs, and that you trust."""


@dataclass(frozen=True)
class List:
    """Name the algorithms and the tasks that they have settings of their own for."""


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Resume, tyro.conf.subcommand("resume")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Plot, tyro.conf.subcommand("plot")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Watch, tyro.conf.subcommand("watch")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[List, tyro.conf.subcommand("list")]
)
RunDirectoryOption = Annotated[
    Path | None, tyro.conf.arg(help="New directory for the run; unset: one below runs/.")
]
StartFromOption = Annotated[
    Path | None,
    tyro.conf.arg(
        name="from",
        metavar="RUN_DIR",
        help="A run whose policy and critic this one starts from, on any task with its spaces.",
    ),
]
