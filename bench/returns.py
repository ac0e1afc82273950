"""Returns over seeds, into a data file: what the tables of the documentation are made from.

.venv/bin/python bench/returns.py HalfCheetah-v5 --total-steps 300000 --seeds 1 2 3
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import platform
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from rl_plugins import train


@dataclass(frozen=True)
class Arguments:
    """What to run. Settings are the tuned ones."""

    task: tyro.conf.Positional[str]
    """A Gymnasium task."""
    total_steps: int
    """Environment steps a run."""
    seeds: tuple[int, ...]
    """Seeds to run; never ones that settings were tuned on (100 and above)."""
    algorithm: str = "trpo"
    """Name of an algorithm."""
    jobs: int = 2
    """Runs at a time, each on one thread. Use 1 where speed is to be quoted."""
    out: Path | None = None
    """Where the figures go; unset: below bench/results."""


def one(algorithm: str, task: str, total_steps: int, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        run = train(
            algorithm, task, run_dir=Path(directory) / "run", seed=seed, total_steps=total_steps
        )
        assert run.evaluation is not None
        with (run.directory / "evaluations.csv").open(newline="") as file:
            passing = [
                {"steps": int(row["steps"]), "mean_return": float(row["mean_return"])}
                for row in csv.DictReader(file)
            ]
        config = json.loads((run.directory / "config.json").read_text())
    return {
        "seed": seed,
        "final": run.evaluation.mean,
        "deviation": run.evaluation.deviation,
        "episodes": len(run.evaluation.returns),
        "seconds": run.seconds,
        "evaluations": passing,
        "config": config,
    }


def main(arguments: Arguments) -> None:
    job = partial(one, arguments.algorithm, arguments.task, arguments.total_steps)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, mp_context=context) as pool:
        runs = list(pool.map(job, arguments.seeds))
    finals = [run["final"] for run in runs]
    seeds = " ".join(map(str, arguments.seeds))
    record = {
        "command": f"python bench/returns.py {arguments.task} --algorithm {arguments.algorithm} "
        f"--total-steps {arguments.total_steps} --seeds {seeds} --jobs {arguments.jobs}",
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "gymnasium", "mujoco")},
        },
        "mean_of_finals": statistics.mean(finals),
        "settings": runs[0]["config"],
        "runs": [{k: v for k, v in run.items() if k != "config"} for run in runs],
    }
    out = arguments.out or Path(__file__).parent / "results" / (
        f"{arguments.algorithm}-{arguments.task}-{arguments.total_steps}.json"
    )
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(record, indent=2) + "\n")
    table = Table("seed", "final, deterministic", "std over episodes", "seconds")
    for run in runs:
        table.add_row(
            str(run["seed"]), f"{run['final']:,.1f}", f"{run['deviation']:,.1f}",
            f"{run['seconds']:.0f}",
        )  # fmt: skip
    table.add_row("mean", f"{statistics.mean(finals):,.1f}", "", "")
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
