"""Adam tuned on a deep autoencoder: learning rates, batch sizes and decays, by wall-clock.

    .venv/bin/python bench/adam_grid.py --task digits --budget 20
    .venv/bin/python bench/adam_grid.py --task curves --budget 40

Loss (cross-entropy) and squared error are over the whole training set, at about 20 log-spaced
times; the clock stands still meanwhile. A run whose CPU seconds fall behind its budget shared its
core, and its curve is too slow by that much.
"""

from __future__ import annotations

import itertools
import json
import math
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from problems.autoencoders import AutoencoderTask, cross_entropy, squared_error, tasks
from rich.console import Console
from rich.table import Table
from torch import Tensor

EVALUATIONS = 20
FIRST = 0.01  # of the budget: when the first evaluation is due
Decay = Literal["constant", "cosine"]


@dataclass(frozen=True)
class Arguments:
    """What to run."""

    task: Literal["curves", "digits"] = "digits"
    """The data and the network."""
    budget: float = 20.0
    """Seconds of training for each setting."""
    threads: int = 1
    """Threads of torch."""
    seed: int = 100
    """Seed of the initial weights and of the batches; the images are always the same."""
    images: int = 5_000
    """Curves to train on."""
    learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    """To try."""
    batch_sizes: tuple[int, ...] = ()
    """To try; by default those that the task suggests."""
    decays: tuple[Decay, ...] = ("constant", "cosine")
    """Of the learning rate: none, or to 0 at the end of the budget."""
    out: Path | None = None
    """Where the figures go; by default bench/results/adam_grid_TASK.json. Settings that it holds
    from runs that differ in nothing else stay."""


@dataclass(frozen=True)
class Setting:
    learning_rate: float
    batch_size: int
    decay: Decay

    def rate(self, progress: float) -> float:
        """At that share of the budget."""
        if self.decay == "constant":
            return self.learning_rate
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(progress, 1)))


@dataclass(frozen=True)
class Point:
    seconds: float
    steps: int
    loss: float
    squared_error: float


@dataclass
class Run:
    setting: Setting
    cpu_seconds: float = 0.0
    curve: list[Point] = field(default_factory=list)

    @property
    def final(self) -> Point:
        return self.curve[-1]


def batches(x: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Epochs without end, each in a new order."""
    while True:
        if size >= len(x):
            yield x
        else:
            for indices in torch.split(torch.randperm(len(x), generator=generator), size):
                yield x[indices]


def train(task: AutoencoderTask, setting: Setting, budget: float, seed: int) -> Run:
    model = task.model(seed)
    # Fused takes 0.75 of the time of a step on digits and 0.9 on curves.
    optimizer = torch.optim.Adam(model.parameters(), lr=setting.learning_rate, fused=True)
    generator = torch.Generator().manual_seed(seed)
    run = Run(setting)

    def evaluate(seconds: float, steps: int) -> None:
        with torch.no_grad():
            loss = float(cross_entropy(model, task.data))
        run.curve.append(Point(seconds, steps, loss, squared_error(model, task.data)))

    evaluate(0.0, 0)
    due = iter(np.geomspace(FIRST * budget, budget, EVALUATIONS).tolist())
    next_due = next(due)
    seconds, start, cpu_start = 0.0, time.perf_counter(), time.process_time()
    for steps, x in enumerate(batches(task.data, setting.batch_size, generator), start=1):
        for group in optimizer.param_groups:
            group["lr"] = setting.rate(seconds / budget)
        optimizer.zero_grad()
        cross_entropy(model, x).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        now = time.perf_counter()
        seconds, start = seconds + now - start, now
        if seconds >= next_due:
            run.cpu_seconds += time.process_time() - cpu_start
            evaluate(seconds, steps)
            if seconds >= budget or not math.isfinite(run.final.loss):
                return run
            next_due = next(moment for moment in due if moment > seconds)
            start, cpu_start = time.perf_counter(), time.process_time()
    raise AssertionError("the batches have no end")


def earlier(path: Path, record: dict[str, Any]) -> dict[Setting, Run]:
    """The runs that the file holds, if all but their settings is as in ``record``."""
    old = json.loads(path.read_text()) if path.exists() else {"runs": []}
    entries = old.pop("runs")
    if old != json.loads(json.dumps(record)):
        return {}
    runs = [
        Run(
            Setting(**entry["setting"]),
            entry["cpu_seconds"],
            [Point(**point) for point in entry["curve"]],
        )
        for entry in entries
    ]
    return {run.setting: run for run in runs}


def main(arguments: Arguments) -> None:
    torch.set_num_threads(arguments.threads)
    task = next(task for task in tasks(arguments.images) if task.name == arguments.task)
    grid = itertools.product(
        arguments.learning_rates, arguments.batch_sizes or task.batch_sizes, arguments.decays
    )
    out = arguments.out or Path(__file__).parent / "results" / f"adam_grid_{task.name}.json"
    record = {
        "task": task.name,
        "sizes": task.sizes,
        "images": len(task.data),
        "entropy": task.entropy,
        "budget": arguments.budget,
        "threads": arguments.threads,
        "seed": arguments.seed,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "scikit-learn")},
        },
    }
    runs = earlier(out, record)
    for setting in itertools.starmap(Setting, grid):
        runs[setting] = train(task, setting, arguments.budget, arguments.seed)
        print(runs[setting].final, f"{runs[setting].cpu_seconds:.1f} CPU s", setting, flush=True)
        # NaN, which compares with nothing, goes last.
        ranked = sorted(runs.values(), key=lambda run: (math.isnan(run.final.loss), run.final.loss))
        entries = [asdict(run) for run in ranked]
        out.parent.mkdir(exist_ok=True)
        out.write_text(json.dumps(record | {"runs": entries}, indent=2) + "\n")

    table = Table("learning rate", "batch", "decay", "steps", "loss", "squared error", "CPU s")
    for run in ranked:
        setting, final = run.setting, run.final
        table.add_row(
            f"{setting.learning_rate:g}", f"{setting.batch_size}", setting.decay,
            f"{final.steps}", f"{final.loss:.3f}", f"{final.squared_error:.3f}",
            f"{run.cpu_seconds:.1f}",
        )  # fmt: skip
    Console(width=100).print(f"{task.name}: no loss is below {task.entropy:.3f}", table)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
