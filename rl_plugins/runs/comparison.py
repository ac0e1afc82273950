"""Runs beside each other: interquartile means over seeds, with bootstrap intervals."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table as RichTable

from rl_plugins.runs.curve import save_figure
from rl_plugins.runs.evaluated import Column, Runs, group_runs

LEVEL = 0.95
RESAMPLES = 2_000


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes
    ----------
    value
        The interquartile mean: of the middle half of the seeds.
    low, high
        The 95 % interval, by bootstrap over seeds; NaN for a single one.
    seeds
        Their number.
    """

    value: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        """The mean, and its interval."""
        if self.seeds < 2:
            return f"{self.value:,.1f}"
        return f"{self.value:,.1f} [{self.low:,.1f}, {self.high:,.1f}]"


def interquartile_mean(values: Column) -> Estimate:
    """The mean of the middle half of a sample, with its bootstrap interval.

    Parameters
    ----------
    values
        One number a seed.

    Notes
    -----
    Source: Agarwal et al., "Deep reinforcement learning at the edge of the statistical precipice",
    2021, section 4.3. scipy's bootstrap, percentile method, of a fixed seed.
    """
    # Imported here: it takes longer than the start of most commands.
    from scipy.stats import bootstrap, trim_mean

    middle = float(trim_mean(values, 0.25))
    if len(values) < 2 or np.ptp(values) == 0:
        bound = middle if len(values) > 1 else float("nan")
        return Estimate(middle, bound, bound, len(values))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        interval = bootstrap(
            (values,),
            lambda sample, axis: trim_mean(sample, 0.25, axis=axis),
            confidence_level=LEVEL,
            n_resamples=RESAMPLES,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
    return Estimate(middle, float(interval.low), float(interval.high), len(values))


def read_runs(paths: Sequence[Path]) -> list[Runs]:
    """Run directories by task and algorithm, in the order of the names: see :func:`group_runs`.

    Parameters
    ----------
    paths
        Their directories.
    """
    return sorted(group_runs(paths), key=lambda each: (each.task, each.algorithm))


def compare_runs(paths: Sequence[Path], out: Path | None = None) -> RichTable:
    """A table of runs, and their curves as a picture.

    Parameters
    ----------
    paths
        Their directories.
    out
        The picture; None: none.

    Raises
    ------
    UsageError
        As :func:`read_runs` does, and where the picture cannot be written.
    """
    runs = read_runs(paths)
    table = RichTable("task", "algorithm", "seeds", "last return", "best return", "steps")
    for each in runs:
        last = np.array([returns[-1] for _, returns in each.curves])
        best = np.array([returns.max() for _, returns in each.curves])
        steps = max(steps[-1] for steps, _ in each.curves)
        table.add_row(
            each.task,
            each.algorithm,
            str(len(each.curves)),
            str(interquartile_mean(last)),
            str(interquartile_mean(best)),
            f"{steps:,.0f}",
        )
    table.caption = f"interquartile mean over seeds [{LEVEL:.0%} bootstrap interval]"
    if out is not None:
        _draw(runs, out)
    return table


def _draw(runs: list[Runs], out: Path) -> None:
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(each.task for each in runs))
    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(5 * columns, 3.6 * rows), layout="constrained")
    panels = dict(zip(tasks, figure.subplots(rows, columns, squeeze=False).flat, strict=False))
    for each in runs:
        panel = panels[each.task]
        grid, values = each.on_grid()
        estimates = [interquartile_mean(column) for column in values.T]
        label = f"{each.algorithm} ({len(each.curves)})"
        (line,) = panel.plot(grid, [e.value for e in estimates], marker="o", label=label)
        if len(each.curves) > 1:
            low, high = [e.low for e in estimates], [e.high for e in estimates]
            panel.fill_between(grid, low, high, color=line.get_color(), alpha=0.2)
    for task, panel in panels.items():
        panel.set(title=task, xlabel="environment steps", ylabel="evaluation return")
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        panel.grid(alpha=0.3)
        panel.legend(title="algorithm (seeds)")
    for empty in figure.axes[len(tasks) :]:
        empty.set_visible(False)
    save_figure(figure, out)
