"""The evaluations of runs, by task and algorithm: what a plot and a comparison are made from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rl_plugins.errors import UsageError
from rl_plugins.runs.files import read_json
from rl_plugins.runs.recorded import shown_task
from rl_plugins.runs.tables import numbers, read_rows

Column = NDArray[np.float64]


@dataclass(frozen=True)
class Runs:
    """The runs of one algorithm on one task.

    Attributes
    ----------
    task, algorithm
        Their names; the task's with what else made it another task.
    curves
        Steps and mean returns of each one's evaluations.
    """

    task: str
    algorithm: str
    curves: list[tuple[Column, Column]]

    def on_grid(self) -> tuple[Column, Column]:
        """Steps that all of them reached, where the shortest one was evaluated; the returns there,
        a row a run."""
        last = min(steps[-1] for steps, _ in self.curves)
        grid = next(steps for steps, _ in self.curves if steps[-1] == last)
        values = np.stack([np.interp(grid, steps, returns) for steps, returns in self.curves])
        return grid, values


def group_runs(paths: Sequence[Path]) -> list[Runs]:
    """Run directories by task and algorithm, in the order in which they were named first.

    Tasks of one name that were made with other arguments or wrappers are other tasks.

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
        raise UsageError(
            "none of the runs has been evaluated yet: there is nothing to draw or to compare"
        )
    return [Runs(*names, curves) for names, curves in found.items()]
