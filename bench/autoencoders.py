"""Deep autoencoders: ours beside Adam as tuned by adam_grid.py, and torch's LBFGS, by wall-clock.

    .venv/bin/python bench/autoencoders.py --tasks digits --seeds 4 5 6 7 8 9
    .venv/bin/python bench/autoencoders.py --tasks curves --seeds 4 5 6

Adam has the setting with the least loss in bench/results/adam_grid_TASK.json, and all have that
grid's budget. Loss and squared error are over the whole training set. The settings of ours were
chosen by a few short runs at seeds 100 to 105. AdaptiveKFAC runs twice with the same settings: with
a closure, by which it takes back a step that raised the loss, and without.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from adam_grid import Setting
from contestants import Training
from problems.autoencoders import AutoencoderTask, cross_entropy, squared_error, tasks
from races import Racer, Results, Run, median_and_range, race, record
from rich.console import Console
from rich.table import Table
from torch import Tensor

from natgrad.curvature import OutputMetric
from natgrad.curvature.metrics import binary_cross_entropy

RESULTS = Path(__file__).parent / "results"
CURVES = {
    "batch_size": 400, "growth": 1.0225, "refresh_every": 5, "decay": 0.8, "fraction": 0.125,
    "damping": 3e-5, "minimum_damping": 3e-5,
}  # fmt: skip
DIGITS = {"batch_size": 1797, "refresh_every": 10, "fraction": 0.0625, "damping": 1e-4}
ADAPTIVE, UNSEEN = "AdaptiveKFAC, closure", "AdaptiveKFAC, no closure"
BOUNDED = {"lr": 0.03, "damping": 0.01, "max_kl": 0.01}
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "curves": {
        ADAPTIVE: {**CURVES, "closure": True},
        UNSEEN: CURVES,
        "KFAC": {"batch_size": 500, "refresh_every": 20, **BOUNDED},
        "HessianFree": {"fraction": 0.2, "damping": 10.0},
        "NaturalGradient": {"fraction": 0.2, "max_kl": 100.0, "max_iterations": 20},
        "LBFGS": {"max_iter": 10},
        "Adam": {},
    },
    "digits": {
        ADAPTIVE: {**DIGITS, "closure": True},
        UNSEEN: DIGITS,
        "KFAC": {"batch_size": 512, "refresh_every": 10, **BOUNDED},
        "HessianFree": {"damping": 10.0, "max_iterations": 50},
        "NaturalGradient": {"max_kl": 10.0},
        "LBFGS": {},
        "Adam": {},
    },
}


@dataclass(frozen=True)
class Arguments:
    """What to run."""

    tasks: tuple[str, ...] = tuple(SETTINGS)
    """Which data."""
    seeds: tuple[int, ...] = (4, 5, 6)
    """Seeds of weights and batches, the images are always the same; never 100, Adam's."""
    contestants: tuple[str, ...] = tuple(SETTINGS["digits"])
    """Which optimizers; runs of others that the file holds stay."""
    budget: float | None = None
    """Seconds of training for each run; by default those of Adam's grid."""
    threads: int = 1
    """Threads of torch."""
    points: int = 75
    """Evaluations, at log-spaced times."""
    out: Path = RESULTS / "autoencoders.json"
    """Where the figures go."""


def metric(logits: Tensor) -> OutputMetric:
    """Of the cross-entropy summed over pixels, a mean over images only."""
    return replace(binary_cross_entropy(logits), samples=float(len(logits)))


def training(task: AutoencoderTask, seed: int) -> Training:
    return Training(task.model(seed), (task.data,), cross_entropy, "bernoulli", metric, seed)


def racer(name: str, on: Training, cost: dict[str, float], setting: dict[str, Any]) -> Racer:
    if name == "Adam":
        return on.adam(Setting(**setting))
    if name == "LBFGS":
        return on.lbfgs(**setting)
    makers: dict[str, Callable[..., Racer]] = {
        ADAPTIVE: on.adaptive_kfac,
        UNSEEN: on.adaptive_kfac,
        "KFAC": on.kfac,
        "HessianFree": on.hessian_free,
        "NaturalGradient": on.natural_gradient,
    }
    return makers[name](cost, **setting)


def main(arguments: Arguments) -> None:
    torch.set_num_threads(arguments.threads)
    known = {task.name: task for task in tasks(5_000)}
    grids = {name: json.loads((RESULTS / f"adam_grid_{name}.json").read_text()) for name in known}
    budgets = {name: arguments.budget or grid["budget"] for name, grid in grids.items()}
    cost = {name: training(known[name], 0).costs() for name in arguments.tasks}
    results = Results(arguments.out, record(
        f"python bench/autoencoders.py --seeds {' '.join(map(str, arguments.seeds))} "
        f"--threads {arguments.threads}"
        + (f" --budget {arguments.budget:g}" if arguments.budget else ""),
        arguments.threads, ("torch", "numpy", "scikit-learn"),
        budgets=budgets, images={name: len(task.data) for name, task in known.items()}, costs=cost,
    ))  # fmt: skip
    for name, seed, contestant in itertools.product(
        arguments.tasks, arguments.seeds, arguments.contestants
    ):
        task, on = known[name], training(known[name], seed)
        setting = grids[name]["runs"][0]["setting"]
        if contestant != "Adam":
            setting = SETTINGS[name][contestant]

        def errors(task: AutoencoderTask = task, on: Training = on) -> dict[str, float]:
            with torch.no_grad():
                loss = float(cross_entropy(on.model, task.data))
            return {"loss": loss, "squared_error": squared_error(on.model, task.data)}

        results.add(race(
            Run(name, contestant, seed, setting), racer(contestant, on, cost[name], setting),
            errors, budgets[name], arguments.points,
        ))  # fmt: skip
    for name in dict.fromkeys(run.problem for run in results.runs):
        shown = Table(*header(name))
        for row in rows(results.runs, name, budgets[name]):
            shown.add_row(*row)
        Console(width=150).print(shown)


def header(task: str) -> list[str]:
    times = ["seconds to Adam's final squared error", "of Adam's seconds"]
    return [task, "final squared error", "final loss", *times, "steps", "CPU"]


def rows(runs: list[Run], task: str, budget: float) -> list[list[str]]:
    """Each run is compared with Adam's of the same seed."""
    runs = [run for run in runs if run.problem == task]
    adam = {
        run.seed: run.final("squared_error", budget) for run in runs if run.contestant == "Adam"
    }
    found = []
    for contestant in SETTINGS[task]:
        mine = [run for run in runs if run.contestant == contestant]
        if mine:
            times = [run.time_to(adam.get(run.seed, 0.0), "squared_error") for run in mine]
            found.append([
                contestant,
                median_and_range((run.final("squared_error", budget) for run in mine), ".3g"),
                median_and_range((run.final("loss", budget) for run in mine), ".4g"),
                median_and_range(times, ".3g"),
                median_and_range((time / budget for time in times), ".2f"),
                median_and_range((run.curve["steps"][-1] for run in mine), ",.0f"),
                f"{min(run.cpu_share for run in mine):.0%}",
            ])  # fmt: skip
    return found


if __name__ == "__main__":
    main(tyro.cli(Arguments))
