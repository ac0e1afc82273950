"""Learning curves as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rl_plugins.errors import UsageError
from rl_plugins.runs.evaluated import Column, group_runs
from rl_plugins.runs.files import replace_whole
from rl_plugins.runs.tables import numbers, read_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_curve(run: Path, out: Path, title: str) -> None:
    """Draw a run: returns of training episodes and of evaluations against steps.

    Parameters
    ----------
    run
        Its directory, with the CSV files.
    out
        The picture; its format is that of the suffix.
    title
        Above the picture.

    Raises
    ------
    UsageError
        Where the picture cannot be written.
    """
    axes = _axes(title)
    steps, returns = _columns(run / "progress.csv", "steps", "episode_return")
    axes.plot(steps, returns, color="tab:blue", alpha=0.6, label="training episodes (sampled)")
    steps, returns, deviations = _columns(
        run / "evaluations.csv", "steps", "mean_return", "deviation"
    )
    label = "evaluation (mode, ± std over episodes)"
    style: Any = {"color": "tab:orange", "marker": "o", "capsize": 3}
    axes.errorbar(steps, returns, deviations, label=label, **style)
    _save(axes, out)


def draw_curves(runs: Sequence[Path], out: Path) -> None:
    """Draw the evaluations of several runs.

    Each algorithm on each task is a line: the mean over its runs (its seeds), within the least and
    the greatest of them.

    Parameters
    ----------
    runs
        Their directories.
    out
        The picture; its format is that of the suffix.

    Raises
    ------
    UsageError
        Where a directory holds no run, none has been evaluated, or the picture cannot be written.
    """
    groups = group_runs(runs)
    axes = _axes("evaluation, mode of the policy: mean, least and greatest run")
    for each in groups:
        grid, values = each.on_grid()
        name = f"{each.algorithm} on {each.task}"
        count = f"{len(values)} run{'s' * (len(values) > 1)}"
        (line,) = axes.plot(grid, values.mean(axis=0), marker="o", label=f"{name} ({count})")
        axes.fill_between(
            grid, values.min(axis=0), values.max(axis=0), color=line.get_color(), alpha=0.2
        )
    _save(axes, out)


def _axes(title: str) -> Axes:
    # Imported here: it takes a sixth of the start of every command, a mistyped one included.
    from matplotlib.figure import Figure

    # A Figure of its own, not pyplot: no display, no global state.
    axes = Figure(figsize=(7, 4), layout="constrained").subplots()
    axes.set(xlabel="environment steps", ylabel="episode return", title=title)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(alpha=0.3)
    return axes


def _save(axes: Axes, out: Path) -> None:
    axes.legend()
    figure = axes.get_figure(root=True)
    assert figure is not None
    save_figure(figure, out)


def save_figure(figure: Figure, out: Path) -> None:
    """Write a figure, whole or not at all.

    Parameters
    ----------
    figure
        The figure.
    out
        The picture; its format is that of the suffix.

    Raises
    ------
    UsageError
        Where it cannot be written.
    """
    try:
        # The format is named: matplotlib would add a suffix to a name that has none.
        form = out.suffix[1:] or "png"
        replace_whole(out, lambda file: figure.savefig(file, dpi=150, format=form))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot draw into {out}: {error}") from error


def _columns(path: Path, *names: str) -> list[Column]:
    return [np.array(column) for column in numbers(read_rows(path), path, *names)]
