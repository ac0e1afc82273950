"""The command line: ``rl-plugins train | resume | evaluate | plot | export | list``."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from rl_plugins.errors import ExperienceError, UsageError
from rl_plugins.plugin import find_plugin, registered_plugins
from rl_plugins.runs import (
    Run,
    RunOutcome,
    draw_curves,
    evaluate_run,
    export_run,
    resolve,
    resume,
    train,
    tuned_settings,
)
from rl_plugins.settings import settings_of

FAILURE_STATUS = 1
USAGE_STATUS = 2
INTERRUPTED_STATUS = 130


@dataclass(frozen=True)
class Train:
    """Train an algorithm on a Gymnasium task; its options follow the two names, and --help after
    these shows all of them."""

    algorithm: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ALGORITHM")]
    """Name of an algorithm: see `rl-plugins list`."""
    task: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TASK")]
    """Name of a Gymnasium task, such as CartPole-v1."""


@dataclass(frozen=True)
class Resume:
    """Go on with a run that was interrupted, from its last checkpoint."""

    run_dir: tyro.conf.Positional[Path]
    """Directory of a run."""


@dataclass(frozen=True)
class Evaluate:
    """Play episodes with the mode of a trained policy."""

    run_dir: tyro.conf.Positional[Path]
    """Directory of a run."""
    episodes: int = 20
    """Episodes to play."""
    json: bool = False
    """Print one JSON object instead of a sentence."""


@dataclass(frozen=True)
class Plot:
    """Draw the learning curves of runs; runs of one algorithm on one task become one curve."""

    run_dirs: tyro.conf.Positional[tuple[Path, ...]]
    """Directories of runs."""
    out: Path = Path("curve.png")
    """The picture."""


@dataclass(frozen=True)
class Export:
    """Write a trained policy as one ONNX file: observations of the task in, its actions out."""

    run_dir: tyro.conf.Positional[Path]
    """Directory of a run."""
    out: tyro.conf.Positional[Path]
    """The file, such as policy.onnx."""


@dataclass(frozen=True)
class List:
    """Name the algorithms and the tasks that they have settings of their own for."""


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Resume, tyro.conf.subcommand("resume")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Plot, tyro.conf.subcommand("plot")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[List, tyro.conf.subcommand("list")]
)


RunDirectoryOption = Annotated[
    Path | None, tyro.conf.arg(help="New directory for the run; unset: one below runs/.")
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments
        Behind the program's name; None: those of the process.

    Returns
    -------
    int
        The exit status: 0, 1 for a task that fails, 2 for bad usage, 130 for Ctrl-C.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(arguments)
    except UsageError as error:
        print(f"rl-plugins: {error}", file=sys.stderr)
        return USAGE_STATUS
    except ExperienceError as error:
        print(f"rl-plugins: {error}", file=sys.stderr)
        return FAILURE_STATUS
    except KeyboardInterrupt:
        return INTERRUPTED_STATUS


def _run(arguments: list[str]) -> int:
    # The options of `train` depend on its algorithm and their defaults on its task, so that the
    # two names are read first and leave the rest, --help included, to the second parser.
    names = arguments[1:3] if arguments[:1] == ["train"] else []
    asks_help = any(name in ("-h", "--help") for name in names)
    if not asks_help and any(name.startswith("-") for name in names):
        raise UsageError("name the two first: rl-plugins train ALGORITHM TASK [options]")
    names_come_first = len(names) == 2 and not asks_help
    command, rest = _parse(
        Command, arguments, "rl-plugins", return_unknown_args=True, add_help=not names_come_first
    )
    if isinstance(command, Train):
        return _train(command, rest)
    if rest:
        raise UsageError(f"unknown option {rest[0]}; see rl-plugins {arguments[0]} --help")
    if isinstance(command, Resume):
        console = _console()
        return _conclude(resume(command.run_dir, console=console), console)
    if isinstance(command, Plot):
        draw_curves(command.run_dirs, command.out)
        print(f"curve: {command.out}")
        return 0
    if isinstance(command, Export):
        inputs = export_run(command.run_dir, command.out)
        print(f"policy: {command.out}, reads {', '.join(inputs)}")
        return 0
    return _evaluate(command) if isinstance(command, Evaluate) else _list()


def _train(command: Train, rest: list[str]) -> int:
    plugin = find_plugin(command.algorithm)
    defaults = resolve(command.algorithm, plugin, command.task, {})
    options_type = dataclasses.make_dataclass(
        "Options",
        [
            ("run", type(defaults.run), dataclasses.field(default=defaults.run)),
            ("config", plugin.Config, dataclasses.field(default=defaults.config)),
            ("run_dir", RunDirectoryOption, dataclasses.field(default=None)),
        ],
    )
    prog = f"rl-plugins train {command.algorithm} {command.task}"
    options = _parse(options_type, rest, prog, config=(tyro.conf.OmitArgPrefixes,))
    console = _console()
    overrides = {**settings_of(options.run), **settings_of(options.config)}
    run = train(
        command.algorithm, command.task, run_dir=options.run_dir, console=console, **overrides
    )
    return _conclude(run, console)


def _console() -> Console:
    # Names of directories and tasks may contain brackets, which rich takes for markup.
    return Console(markup=False, emoji=False, highlight=False)


def _conclude(run: Run, console: Console) -> int:
    console.print(f"{run.steps / run.seconds:,.0f} steps/s over the whole run")
    console.print(f"run: {run.directory}", soft_wrap=True)
    if (run.directory / "curve.png").exists():
        console.print(f"curve: {run.directory / 'curve.png'}", soft_wrap=True)
    if run.outcome is RunOutcome.INTERRUPTED:
        console.print(f"interrupted after {run.steps:,} steps")
        return INTERRUPTED_STATUS
    return 0


def _evaluate(command: Evaluate) -> int:
    evaluation = evaluate_run(command.run_dir, episodes=command.episodes)
    if command.json:
        record = {
            "episodes": len(evaluation.returns),
            "mean_return": evaluation.mean,
            "deviation": evaluation.deviation,
            "returns": evaluation.returns,
            "lengths": evaluation.lengths,
        }
        print(json.dumps(record))
    else:
        print(
            f"{evaluation.mean:,.1f} ± {evaluation.deviation:,.1f} "
            f"over {len(evaluation.returns)} episodes"
        )
    return 0


def _list() -> int:
    plugins = registered_plugins()
    width = max(map(len, plugins), default=0)
    reach = max((len(point.value) for point in plugins.values()), default=0)
    for name, point in plugins.items():
        tasks = ", ".join(tuned_settings(name)) or "none"
        print(f"{name:{width}}  {point.value:{reach}}  settings for: {tasks}")
    return 0


def _parse(target: Any, arguments: list[str], prog: str, **options: Any) -> Any:
    """tyro's parser, with its framed report of an error folded into one line."""
    report = io.StringIO()
    try:
        with contextlib.redirect_stderr(report):
            return tyro.cli(target, args=arguments, prog=prog, **options)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(_one_line(report.getvalue())) from None


def _one_line(report: str) -> str:
    # tyro draws a frame with the title on top, and rules between paragraphs; on a terminal without
    # box-drawing characters no frame, and rules of dashes.
    lines = [line.strip("│ ") for line in report.splitlines() if not line.startswith(("╭", "╰"))]
    paragraphs = re.split("─+|-{5,}", " ".join(lines))
    return "; ".join(" ".join(part.split()) for part in paragraphs if part.strip())
