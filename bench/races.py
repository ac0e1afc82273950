"""Several optimizers on one problem: errors against seconds, and against gradients of the loss.

The clock runs during steps, and stands still while errors are measured. Work is counted call by
call, in gradients of the whole training loss: a batch counts by its share, other calls by what they
were measured to cost beside a gradient in the same run; linear algebra on matrices that exist is in
the seconds only.
"""

from __future__ import annotations

import json
import math
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

FIRST = 0.003  # of the budget: when the first evaluation is due
LONG = 0.02  # of the budget: steps that take longer are all evaluated
REPEATS = 7  # of each call whose cost is measured

Errors = Mapping[str, float]


@dataclass(frozen=True)
class Racer:
    """``step(progress)`` makes a step at that share of the budget, and returns the work it took, in
    gradients. ``status()`` names how it ended, where the optimizer says."""

    step: Callable[[float], float]
    status: Callable[[], str] = str


@dataclass
class Run:
    """``curve`` holds columns: seconds, gradients, steps, and one for each error."""

    problem: str
    contestant: str
    seed: int
    setting: dict[str, Any] = field(default_factory=dict)
    cpu_seconds: float = 0.0
    ended: str = "budget"
    statuses: dict[str, int] = field(default_factory=dict)
    curve: dict[str, list[float]] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, int]:
        return self.problem, self.contestant, self.seed

    @property
    def cpu_share(self) -> float:
        """CPU seconds by the clock's: below 1, by one thread, where others had the core too."""
        return self.cpu_seconds / max(self.curve["seconds"][-1], 1e-9)

    def final(self, error: str, budget: float) -> float:
        """The error at the end of the last step that ended within the budget, to a percent."""
        pairs = zip(self.curve["seconds"], self.curve[error], strict=True)
        return [value for seconds, value in pairs if seconds <= 1.01 * budget][-1]

    def time_to(self, threshold: float, error: str) -> float:
        """Seconds at the first evaluation at or below the threshold; infinite where none was."""
        pairs = zip(self.curve["seconds"], self.curve[error], strict=True)
        return next((seconds for seconds, value in pairs if value <= threshold), math.inf)


def race(run: Run, racer: Racer, errors: Callable[[], Errors], budget: float, points: int) -> Run:
    """``run`` with what happened until the budget of seconds was over, or an exception ended it.

    Errors are measured at ``points`` log-spaced times.
    """

    def evaluate() -> None:
        row = {"seconds": seconds, "gradients": gradients, "steps": steps, **errors()}
        for name, value in row.items():
            run.curve.setdefault(name, []).append(float(f"{value:.6g}"))

    seconds, gradients, steps, statuses = 0.0, 0.0, 0, Counter[str]()
    evaluate()
    due = np.geomspace(FIRST * budget, budget, points)
    last = 0.0
    while seconds + last <= budget:  # the next step probably ends in time
        start, cpu_start = time.perf_counter(), time.process_time()
        try:
            work = racer.step(seconds / budget)
        except Exception as error:
            run.ended = f"{type(error).__name__}: {error}"[:200]
            break
        last = time.perf_counter() - start
        run.cpu_seconds += time.process_time() - cpu_start
        before, seconds, gradients, steps = seconds, seconds + last, gradients + work, steps + 1
        statuses[racer.status()] += 1
        passed = np.searchsorted(due, before, "right") < np.searchsorted(due, seconds, "right")
        if passed or last > LONG * budget or seconds + last > budget:
            evaluate()
    run.cpu_seconds = round(run.cpu_seconds, 2)
    run.statuses = {name: count for name, count in statuses.items() if name}
    return run


def costs(gradient: Callable[[], Any], **calls: Callable[[], Any]) -> dict[str, float]:
    """What each call costs in gradients: medians, taken in turns."""
    seconds: dict[str, list[float]] = {}
    for _ in range(REPEATS):
        for name, call in {"gradient": gradient, **calls}.items():
            start = time.perf_counter()
            call()
            seconds.setdefault(name, []).append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {name: round(median / medians["gradient"], 3) for name, median in medians.items()}


def record(command: str, threads: int, packages: Iterable[str], **settings: Any) -> dict[str, Any]:
    return {
        "command": command,
        "machine": {
            "processor": platform.machine(), "system": platform.system(), "threads": threads
        },
        "versions": {
            "python": platform.python_version(), **{name: version(name) for name in packages}
        },
        **settings,
    }  # fmt: skip


class Results:
    """The runs of a file, written after each of them.

    Runs that it holds already stay until they are run again, if its record is ``like`` this one in
    all but the command and the measured costs.
    """

    def __init__(self, path: Path, like: dict[str, Any]) -> None:
        self._path, self._record = path, like
        record, runs = load(path) if path.exists() else ({}, [])
        same = _comparable(record) == _comparable(like)
        self._runs = {run.key: run for run in runs if same}

    @property
    def runs(self) -> list[Run]:
        return list(self._runs.values())

    def has(self, problem: str, contestant: str, seed: int) -> bool:
        return (problem, contestant, seed) in self._runs

    def add(self, run: Run) -> None:
        self._runs[run.key] = run
        self._path.parent.mkdir(exist_ok=True)
        text = json.dumps(self._record | {"runs": [asdict(run) for run in self.runs]}, indent=1)
        self._path.write_text(text + "\n")
        last = {name: column[-1] for name, column in run.curve.items()}
        shown = ", ".join(f"{name} {value:.4g}" for name, value in last.items())
        print(
            f"{run.key}: {shown}; {run.cpu_share:.0%} CPU; {run.ended}; {run.statuses}", flush=True
        )


def load(path: Path) -> tuple[dict[str, Any], list[Run]]:
    record = json.loads(path.read_text())
    return record, [Run(**entry) for entry in record.pop("runs")]


def _comparable(record: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in record.items() if name not in ("command", "costs")}
    written: dict[str, Any] = json.loads(json.dumps(kept))
    return written


def median_and_range(values: Iterable[float], format: str = ".2g") -> str:
    """``median (least to most)``; a dash stands for infinity, what was never reached."""
    ordered = sorted(values, key=lambda value: (math.isnan(value), value))
    three = (statistics.median(ordered), ordered[0], ordered[-1])
    shown = ["–" if math.isinf(value) else f"{value:{format}}" for value in three]
    return shown[0] if len(set(shown)) == 1 else f"{shown[0]} ({shown[1]} to {shown[2]})"
