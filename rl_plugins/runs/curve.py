"""The learning curve of a run as a picture."""

from __future__ import annotations

import csv
from pathlib import Path

from matplotlib.figure import Figure


def draw_curve(run: Path, out: Path, title: str) -> None:
    """Returns of training episodes and of evaluations against steps, from the run's CSV files."""
    # A Figure of its own, not pyplot: no display, no global state.
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    steps, returns = _columns(run / "progress.csv", "steps", "episode_return")
    axes.plot(steps, returns, color="tab:blue", alpha=0.6, label="training episodes (sampled)")
    steps, returns = _columns(run / "evaluations.csv", "steps", "mean_return")
    _, deviations = _columns(run / "evaluations.csv", "steps", "deviation")
    axes.errorbar(
        steps, returns, deviations, color="tab:orange", marker="o", capsize=3,
        label="evaluation (mode, ± std over episodes)",
    )  # fmt: skip
    axes.set(xlabel="environment steps", ylabel="episode return", title=title)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(out, dpi=150)


def _columns(path: Path, x: str, y: str) -> tuple[list[float], list[float]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get(y)]
    return [float(row[x]) for row in rows], [float(row[y]) for row in rows]
