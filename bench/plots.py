"""Draws the races of bench/results into docs/pages: medians over seeds, and their range.

    .venv/bin/python bench/plots.py

On the left against seconds, on the right against gradients of the whole training loss (races.py).
Between evaluations an error stays what the last one measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import tyro
from matplotlib.axes import Axes
from PIL import Image
from races import Run, load

mpl.use("Agg")
ROOT = Path(__file__).parent.parent
AXES = {"seconds": "seconds", "gradients": "work, in gradients"}
PEERS = {"Adam": "black", "LBFGS": "tab:gray"}


@dataclass(frozen=True)
class Figure:
    """``error`` is the column of the curves to draw, ``label`` what it says on the axis."""

    error: str
    label: str


FIGURES = {
    "poisson": Figure("error", "relative L2 error"),
    "autoencoders": Figure("squared_error", "squared error, training"),
    "classification": Figure("loss", "cross-entropy, training"),
}


@dataclass(frozen=True)
class Arguments:
    """What to draw."""

    names: tuple[str, ...] = tuple(FIGURES)
    """Of files in ``results``; those that are not there are left out."""
    results: Path = ROOT / "bench" / "results"
    """Where the figures are."""
    out: Path = ROOT / "docs" / "pages"
    """Where the pictures go."""


def band(runs: list[Run], along: str, error: str) -> tuple[np.ndarray, np.ndarray]:
    """Places ``along``, and there the least, the median and the largest error of the runs.

    From where all have been measured a first time, until the first of them ended.
    """
    columns = [(np.array(run.curve[along][1:]), np.array(run.curve[error][1:])) for run in runs]
    columns = [(x, y) for x, y in columns if len(x)]
    if not columns:
        return np.empty(0), np.empty((3, 0))
    first, last = max(x[0] for x, _ in columns), min(x[-1] for x, _ in columns)
    places = np.unique(np.concatenate([x[(first <= x) & (x <= last)] for x, _ in columns]))
    known = np.stack([y[np.searchsorted(x, places, "right") - 1] for x, y in columns])
    return places, np.stack([known.min(0), np.median(known, 0), known.max(0)])


def draw(axes: Axes, runs: list[Run], along: str, error: str, colors: dict[str, str]) -> None:
    start = max(run.curve[error][0] for run in runs)
    lowest = start
    for name, color in colors.items():
        mine = [run for run in runs if run.contestant == name]
        places, (low, middle, high) = band(mine, along, error)
        style = "--" if name in PEERS else "-"
        axes.plot(places, middle, style, color=color, label=name, linewidth=1.6)
        axes.fill_between(places, low, high, color=color, alpha=0.15, linewidth=0)
        lowest = min(lowest, low.min(initial=start))
    axes.set(xscale="log", yscale="log", ylim=(lowest / 1.5, start * 1.5))
    axes.grid(alpha=0.3)


def picture(name: str, results: Path, out: Path) -> Path | None:
    path, figure = results / f"{name}.json", FIGURES[name]
    if not path.exists():
        return None
    record, runs = load(path)
    # The runs that tuned Adam are no race.
    runs = [run for run in runs if run.seed != record.get("tuning_seed")]
    problems = list(dict.fromkeys(run.problem for run in runs))
    contestants = list(dict.fromkeys(run.contestant for run in runs))
    own = [contestant for contestant in contestants if contestant not in PEERS]
    colors = {contestant: f"C{index}" for index, contestant in enumerate(own)} | {
        peer: color for peer, color in PEERS.items() if peer in contestants
    }
    picture, grid = plt.subplots(
        len(problems), 2, figsize=(8.5, 0.9 + 2.9 * len(problems)), squeeze=False,
        sharey="row", layout="constrained",
    )  # fmt: skip
    for row, problem in zip(grid, problems, strict=True):
        mine = [run for run in runs if run.problem == problem]
        for axes, (along, label) in zip(row, AXES.items(), strict=True):
            draw(axes, mine, along, figure.error, colors)
            axes.set_xlabel(label)
        row[0].set_ylabel(f"{problem}: {figure.label}")
    handles, labels = grid[0][0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    target = out / f"{name}.png"
    picture.savefig(target, dpi=100)
    plt.close(picture)
    # A palette takes a third of the bytes.
    Image.open(target).convert("RGB").quantize(64).save(target, optimize=True)
    return target


def main(arguments: Arguments) -> None:
    for name in arguments.names:
        path = picture(name, arguments.results, arguments.out)
        print(f"{name}: " + (f"{path}, {path.stat().st_size:,} bytes" if path else "no results"))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
