"""The learning curve of a run as a picture."""

from __future__ import annotations

import csv
from pathlib import Path


def draw_curve(run: Path, out: Path, title: str) -> None:
    """Returns of training episodes and of evaluations against steps, from the run's CSV files."""
    # Imported here: a sixth of the start of every command, a mistyped one included.
    from matplotlib.figure import Figure

    # A Figure of its own, not pyplot: no display, no global state.
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    steps, returns = _columns(run / "progress.csv", "steps", "episode_return")
    axes.plot(steps, returns, color="tab:blue", alpha=0.6, label="training episodes (sampled)")
    steps, returns, deviations = _columns(
        run / "evaluations.csv", "steps", "mean_return", "deviation"
    )
    axes.errorbar(
        steps, returns, deviations, color="tab:orange", marker="o", capsize=3,
        label="evaluation (mode, ± std over episodes)",
    )  # fmt: skip
    axes.set(xlabel="environment steps", ylabel="episode return", title=title)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(out, dpi=150)


def _columns(path: Path, *names: str) -> list[list[float]]:
    """Columns of a table by name, without the rows where one of them is blank."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if all(row.get(name) for name in names)]
    return [[float(row[name]) for row in rows] for name in names]
