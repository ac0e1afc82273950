"""Runs beside each other: interquartile means over seeds, with bootstrap intervals."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.table import Table as RichTable
from scipy.stats import bootstrap, trim_mean

from rl_plugins.errors import UsageError
from rl_plugins.runs.files import read_json, replace_whole
from rl_plugins.runs.recorded import shown_task
from rl_plugins.runs.tables import numbers, read_rows

LEVEL = 0.95
RESAMPLES = 2_000
Column = NDArray[np.float64]


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


@dataclass(frozen=True)
class Runs:
    """The runs of one algorithm on one task: steps and returns of each one's evaluations."""

    task: str
    algorithm: str
    curves: list[tuple[Column, Column]]

    @property
    def last(self) -> Estimate:
        """Of the last evaluation of each."""
        return interquartile_mean(np.array([returns[-1] for _, returns in self.curves]))

    @property
    def best(self) -> Estimate:
        """Of the best evaluation of each."""
        return interquartile_mean(np.array([returns.max() for _, returns in self.curves]))

    def on_grid(self) -> tuple[Column, list[Estimate]]:
        """Steps that all of them reached, and the mean over the runs at each."""
        last = min(steps[-1] for steps, _ in self.curves)
        grid = next(steps for steps, _ in self.curves if steps[-1] == last)
        values = np.stack([np.interp(grid, steps, returns) for steps, returns in self.curves])
        return grid, [interquartile_mean(column) for column in values.T]


def read_runs(paths: Sequence[Path]) -> list[Runs]:
    """Run directories by task and algorithm, in the order of the names. Tasks of one name that were
    made with other arguments or wrappers are other tasks.

    Parameters
    ----------
    paths
        Their directories.

    Raises
    ------
    UsageError
        Where one holds no run, or none of them has been evaluated.
    """
    if not paths:
        raise UsageError("name at least one run directory")
    found: dict[tuple[str, str], list[tuple[Column, Column]]] = defaultdict(list)
    for path in paths:
        config = read_json(path, "config.json")
        names = (config.get("task"), config.get("algorithm"))
        if not all(isinstance(name, str) for name in names):
            raise UsageError(f"{path / 'config.json'} is damaged: it holds no run")
        table = path / "evaluations.csv"
        steps, returns = numbers(read_rows(table), table, "steps", "mean_return")
        if steps:
            key = (shown_task(config), str(config["algorithm"]))
            found[key].append((np.array(steps), np.array(returns)))
    if not found:
        raise UsageError("none of the runs has been evaluated yet: there is nothing to compare")
    return [Runs(*names, curves) for names, curves in sorted(found.items())]


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
        steps = max(steps[-1] for steps, _ in each.curves)
        table.add_row(
            each.task,
            each.algorithm,
            str(len(each.curves)),
            str(each.last),
            str(each.best),
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
        grid, estimates = each.on_grid()
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
    try:
        form = out.suffix[1:] or "png"
        replace_whole(out, lambda file: figure.savefig(file, dpi=150, format=form))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot draw into {out}: {error}") from error
