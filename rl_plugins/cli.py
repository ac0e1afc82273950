"""The command line: ``rl-plugins train | resume | evaluate | watch | plot | compare | …``."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import tyro
from rich.console import Console

import natgrad
from rl_plugins.commands import (
    Command,
    Compare,
    Evaluate,
    Export,
    List,
    Plot,
    Resume,
    RunDirectoryOption,
    StartFromOption,
    Train,
    Watch,
)
from rl_plugins.errors import DamageWarning, ExperienceError, UsageError, one_line
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
from rl_plugins.runs.comparison import compare_runs
from rl_plugins.runs.film import watch_run
from rl_plugins.settings import settings_of

FAILURE_STATUS = 1
USAGE_STATUS = 2
SIGNAL_STATUS = 128


class PatientConsole(Console):
    """A console whose reader may go away: a run outlives the ``| head`` that showed its start."""

    def on_broken_pipe(self) -> None:
        """Go on in silence; rich would end the program."""
        self.quiet = True
        _drop_output()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments
        Behind the program's name; None: those of the process.

    Returns
    -------
    int
        The exit status: 0, 1 for a task that fails, 2 for bad usage, 128 + n for signal n (130 for
        Ctrl-C).
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments == ["--version"]:
        print(f"rl-plugins {natgrad.__version__}")
        return 0
    # The console script's path has its own folder in place of this one, where a user's module is.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    with warnings.catch_warnings():
        warnings.simplefilter("always", DamageWarning)
        shown = warnings.showwarning
        warnings.showwarning = partial(_show_warning, shown)
        try:
            return _run(arguments)
        except UsageError as error:
            _complain(error)
            return USAGE_STATUS
        except ExperienceError as error:
            _complain(error)
            return FAILURE_STATUS
        except BrokenPipeError:
            _drop_output()
            return FAILURE_STATUS
        except OSError as error:
            _complain(error)  # a full disk, a directory that is gone
            return FAILURE_STATUS
        except KeyboardInterrupt:
            return SIGNAL_STATUS + 2
        finally:
            warnings.showwarning = shown


def _drop_output() -> None:
    # What is buffered would fail again when Python flushes it at the end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(error: Exception) -> None:
    print(f"rl-plugins: {one_line(error)}", file=sys.stderr)


def _show_warning(
    shown: Callable[..., None],
    message: Warning | str,
    category: type[Warning],
    *rest: Any,
    **more: Any,
) -> None:
    if not issubclass(category, DamageWarning):
        return shown(message, category, *rest, **more)
    print(f"rl-plugins: {' '.join(str(message).split())}", file=sys.stderr)


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
    return _act(command)


def _act(command: Any) -> int:
    if isinstance(command, Resume):
        console = _console()
        settings = dataclasses.asdict(command)
        return _conclude(resume(settings.pop("run_dir"), console=console, **settings), console)
    if isinstance(command, Plot):
        draw_curves(command.run_dirs, command.out)
        print(f"curve: {command.out}")
    elif isinstance(command, Compare):
        # As wide as the table where the output is read by a program.
        console = Console(width=None if sys.stdout.isatty() else 160)
        console.print(compare_runs(command.run_dirs, command.out))
        if command.out is not None:
            print(f"curves: {command.out}")
    elif isinstance(command, Watch):
        settings = dataclasses.asdict(command)
        evaluation = watch_run(settings.pop("run_dir"), **settings)
        print(evaluation)
        if command.out is not None:
            print(f"film: {command.out}")
    elif isinstance(command, Export):
        settings = dataclasses.asdict(command)
        inputs = export_run(settings.pop("run_dir"), settings.pop("out"), **settings)
        print(f"policy: {command.out}, reads {', '.join(inputs)}")
    elif isinstance(command, Evaluate):
        _evaluate(command)
    else:
        assert isinstance(command, List)
        _list()
    return 0


def _train(command: Train, rest: list[str]) -> int:
    plugin = find_plugin(command.algorithm)
    defaults = resolve(command.algorithm, plugin, command.task, {})
    options_type = dataclasses.make_dataclass(
        "Options",
        [
            ("run", type(defaults.run), dataclasses.field(default=defaults.run)),
            ("config", plugin.Config, dataclasses.field(default=defaults.config)),
            ("run_dir", RunDirectoryOption, dataclasses.field(default=None)),
            ("start_from", StartFromOption, dataclasses.field(default=None)),
        ],
    )
    prog = f"rl-plugins train {command.algorithm} {command.task}"
    options = _parse(options_type, rest, prog, config=(tyro.conf.OmitArgPrefixes,))
    console = _console()
    overrides = {**settings_of(options.run), **settings_of(options.config)}
    run = train(
        command.algorithm,
        command.task,
        run_dir=options.run_dir,
        start_from=options.start_from,
        console=console,
        **overrides,
    )
    return _conclude(run, console)


def _console() -> Console:
    # Names of directories and tasks may contain brackets, which rich takes for markup.
    return PatientConsole(markup=False, emoji=False, highlight=False)


def _conclude(run: Run, console: Console) -> int:
    def say(text: str) -> None:
        console.print(text, soft_wrap=True)

    say(f"{run.steps / run.seconds:,.0f} steps/s over the whole run")
    say(f"run: {run.directory}")
    if (run.directory / "curve.png").exists():
        say(f"curve: {run.directory / 'curve.png'}")
    if run.outcome is RunOutcome.INTERRUPTED:
        say(f"interrupted after {run.steps:,} steps; go on: rl-plugins resume {run.directory}")
        return SIGNAL_STATUS + (run.signal or 2)
    if run.outcome is RunOutcome.STOPPED:
        say(f"stopped after {run.steps:,} steps: {run.reason}")
    say(f"next: rl-plugins watch | evaluate | export | resume --total-steps N  {run.directory}")
    return 0


def _evaluate(command: Evaluate) -> None:
    settings = dataclasses.asdict(command)
    del settings["json"]
    evaluation = evaluate_run(settings.pop("run_dir"), **settings)
    if not command.json:
        print(evaluation)
        return
    record = {
        "episodes": len(evaluation.returns),
        "mean_return": evaluation.mean,
        "deviation": evaluation.deviation,
        "cut": evaluation.cut,
        "returns": evaluation.returns,
        "lengths": evaluation.lengths,
    }
    print(json.dumps(record))


def _list() -> None:
    plugins = registered_plugins()
    width = max(map(len, plugins), default=0)
    reach = max((len(point.value) for point in plugins.values()), default=0)
    for name, point in plugins.items():
        tasks = ", ".join(tuned_settings(name)) or "none"
        print(f"{name:{width}}  {point.value:{reach}}  settings for: {tasks}")


def _parse(target: Any, arguments: list[str], prog: str, **options: Any) -> Any:
    """tyro's parser, with its framed report of an error folded into one line."""
    report = io.StringIO()
    try:
        with contextlib.redirect_stderr(report):
            return tyro.cli(target, args=arguments, prog=prog, **options)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(_unframed(report.getvalue())) from None
    except (ValueError, OverflowError) as error:  # of a settings dataclass that checks itself
        raise UsageError(one_line(error)) from None


def _unframed(report: str) -> str:
    # tyro draws a frame with the title on top, and rules between paragraphs; on a terminal without
    # box-drawing characters no frame, and rules of dashes.
    lines = [line.strip("│ ") for line in report.splitlines() if not line.startswith(("╭", "╰"))]
    paragraphs = re.split("─+|-{5,}", " ".join(lines))
    return "; ".join(" ".join(part.split()) for part in paragraphs if part.strip())
