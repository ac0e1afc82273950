"""Poisson's equation by a small tanh network: ours beside Adam, tuned, and torch's LBFGS.

    .venv/bin/python bench/poisson.py --budget 120 --seeds 1 2 3

Adam's learning rate and decay are those with the least final error at seed 100, which tunes only
and draws other points and weights. LevenbergMarquardt and NaturalGradient are handed the Jacobian
(Müller & Zeinhofer's "energy natural gradient" is the latter with the dense JᵀJ). The error is
‖u − u*‖ / ‖u*‖ over points of its own.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from adam_grid import Decay, Setting
from contestants import adam, lbfgs, ours, searched, standard
from problems.poisson import PoissonProblem, network, poisson_2d, poisson_5d
from races import Racer, Results, Run, costs, median_and_range, race, record
from rich.console import Console
from rich.table import Table
from torch import Tensor

from natgrad import GaussNewton, Hessian, backtracking, cholesky
from natgrad.curvature import Dense, LinearOperator, OutputMetric
from natgrad.optim import HessianFree, LevenbergMarquardt, NaturalGradient, TrustRegionNewton

PROBLEMS = {"2-d": poisson_2d, "5-d": poisson_5d}
THRESHOLDS = (1e-3, 1e-4, 1e-5, 1e-6)
TUNING_SEED = 100
ENGD, HF = {"damping": 1e-8, "max_kl": 0.1}, {"damping": 0.1}
CONTESTANTS: dict[str, dict[str, Any]] = {
    "LevenbergMarquardt, accelerated": {"acceleration": 0.75},
    "LevenbergMarquardt, scaled and accelerated": {"scaled": True, "acceleration": 0.75},
    "LevenbergMarquardt": {},
    "NaturalGradient, dense": ENGD,
    "HessianFree": HF,
    "TrustRegionNewton": {},
    "LBFGS": {},
    "Adam": {},
}


@dataclass(frozen=True)
class Arguments:
    """What to run."""

    budget: float = 120.0
    """Seconds of training for each run."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds of points and weights."""
    problems: tuple[str, ...] = tuple(PROBLEMS)
    """Which dimensions."""
    contestants: tuple[str, ...] = tuple(CONTESTANTS)
    """Which optimizers; runs of others that the file holds stay."""
    threads: int = 1
    """Threads of torch."""
    points: int = 25
    """Evaluations, at log-spaced times."""
    learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    """Adam's, to try."""
    decays: tuple[Decay, ...] = ("constant", "cosine")
    """Adam's, to try."""
    out: Path = Path(__file__).parent / "results" / "poisson.json"
    """Where the figures go."""


class Posed:
    """A network on a problem, with the losses and curvature that its optimizers ask for."""

    def __init__(self, problem: PoissonProblem, seed: int) -> None:
        self.problem, self.model = problem, network(problem.dimension, seed)
        self.parameters = list(self.model.parameters())

    def residuals(self) -> Tensor:
        return self.problem.residuals(self.model)

    def jacobian(self) -> Tensor:
        return self.problem.jacobian(self.model)

    def loss(self) -> Tensor:
        r = self.residuals()
        return r @ r / 2

    @torch.enable_grad()
    def gauss_newton(self) -> LinearOperator:
        def metric(r: Tensor) -> OutputMetric:
            return OutputMetric((r,), lambda tangents: tangents)

        return GaussNewton(self.residuals(), self.parameters, metric, reduction="sum")

    def dense(self) -> LinearOperator:
        J = self.jacobian()
        return Dense(J.mT @ J)

    def backward(self) -> float:
        self.loss().backward()  # type: ignore[no-untyped-call]
        return 1.0

    def costs(self) -> dict[str, float]:
        G, H = self.gauss_newton(), Hessian(self.loss(), self.parameters)
        v = torch.randn(G.shape[0], dtype=G.dtype, generator=torch.Generator().manual_seed(0))
        return costs(
            lambda: torch.autograd.grad(self.loss(), self.parameters),
            forward=self.loss, jacobian=self.jacobian, product=lambda: G @ v, hessian=lambda: H @ v,
        )  # fmt: skip


def racer(name: str, on: Posed, cost: dict[str, float], setting: dict[str, Any]) -> Racer:
    parameters, loss = on.parameters, on.loss
    if name.startswith("Adam"):
        return adam(parameters, on.backward, Setting(**setting))
    if name == "LBFGS":
        return lbfgs(parameters, loss)
    optimizer: Any
    if name.startswith("LevenbergMarquardt"):
        optimizer = LevenbergMarquardt(parameters, jacobian=on.jacobian, **setting)
        return ours(optimizer, on.residuals, searched(cost, None, fixed=cost["jacobian"]))
    if name == "NaturalGradient, dense":
        optimizer = NaturalGradient(
            parameters, curvature=on.dense, solver=cholesky,
            search=partial(backtracking, max_backtracks=30), **setting,
        )  # fmt: skip
        work = searched(cost, None, fixed=cost["jacobian"])
    elif name == "HessianFree":
        optimizer = HessianFree(parameters, curvature=on.gauss_newton, **setting)
        work = searched(cost)
    else:
        optimizer = TrustRegionNewton(parameters, **setting)
        work = searched(cost, "hessian")
    return ours(optimizer, standard(optimizer, loss), work)


def main(arguments: Arguments) -> None:
    torch.set_num_threads(arguments.threads)
    budget, seeds = arguments.budget, arguments.seeds
    unit = {name: Posed(PROBLEMS[name](TUNING_SEED), TUNING_SEED).costs() for name in PROBLEMS}
    like = record(
        f"python bench/poisson.py --budget {budget:g} --seeds {' '.join(map(str, seeds))} "
        f"--threads {arguments.threads}",
        arguments.threads, ("torch", "numpy"),
        budget=budget, tuning_seed=TUNING_SEED, costs=unit,
    )  # fmt: skip
    results = Results(arguments.out, like)

    def go(problem: str, name: str, seed: int, setting: dict[str, Any]) -> None:
        posed = PROBLEMS[problem](seed)
        on = Posed(posed, seed)
        results.add(race(
            Run(problem, name, seed, setting), racer(name, on, unit[problem], setting),
            lambda: {"error": posed.error(on.model)}, budget, arguments.points,
        ))  # fmt: skip

    settings = itertools.starmap(Setting, itertools.product(
        arguments.learning_rates, (0,), arguments.decays
    ))  # fmt: skip
    grid = list(settings) if "Adam" in arguments.contestants else []
    for problem in arguments.problems:
        for setting in grid:
            name = f"Adam, {setting.learning_rate:g}, {setting.decay}"
            if not results.has(problem, name, TUNING_SEED):
                go(problem, name, TUNING_SEED, asdict(setting))
        tried = [run for run in results.runs if (run.problem, run.seed) == (problem, TUNING_SEED)]
        best = min(tried, key=lambda run: run.final("error", budget), default=None)
        for seed, name in itertools.product(seeds, arguments.contestants):
            go(problem, name, seed, best.setting if name == "Adam" and best else CONTESTANTS[name])
    for problem in dict.fromkeys(run.problem for run in results.runs):
        shown = Table(*header(problem))
        for row in rows(results.runs, problem, budget):
            shown.add_row(*row)
        Console(width=150).print(shown)


def header(problem: str) -> list[str]:
    times = [f"seconds to {threshold:g}" for threshold in THRESHOLDS]
    return [f"Poisson {problem}", *times, "final error", "gradients", "CPU"]


def rows(runs: list[Run], problem: str, budget: float) -> list[list[str]]:
    found = []
    for name in CONTESTANTS:
        mine = [run for run in runs if (run.problem, run.contestant) == (problem, name)]
        if mine:
            times = [[run.time_to(threshold, "error") for run in mine] for threshold in THRESHOLDS]
            found.append([
                name,
                *(median_and_range(each, ".3g") for each in times),
                median_and_range(run.final("error", budget) for run in mine),
                median_and_range((run.curve["gradients"][-1] for run in mine), ",.0f"),
                f"{min(run.cpu_share for run in mine):.0%}",
            ])  # fmt: skip
    return found


if __name__ == "__main__":
    main(tyro.cli(Arguments))
