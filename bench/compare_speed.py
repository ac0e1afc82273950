"""The primitives' benchmarks of two revisions, in turn: which is faster, and by how much.

    make bench-compare REV=HEAD~1

bench/test_primitives.py of this tree runs by pytest-benchmark against both packages, one process
after the other, so that both meet the same machine at the same hour.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import tyro
from compare_revisions import HERE, checkout
from rich.console import Console
from rich.table import Table

SUITE = Path(__file__).with_name("test_primitives.py")


def measure(tree: Path, out: Path, only: str) -> dict[str, float]:
    """The shortest round of every benchmark with the packages of this tree, in seconds."""
    subprocess.run(
        [
            str(Path(sys.executable).with_name("pytest")),
            str(SUITE),
            "--quiet",
            "--override-ini=addopts=--import-mode=importlib",
            "--override-ini=pythonpath=",
            "--benchmark-only",
            f"--benchmark-json={out}",
            f"-k={only}",
        ],
        env={**os.environ, "PYTHONPATH": str(tree)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return {entry["name"]: entry["min"] for entry in json.loads(out.read_text())["benchmarks"]}


def main(base: str, rounds: int = 3, only: str = "") -> None:
    """Compare this tree with another revision.

    Args:
        base: A revision, as git names it.
        rounds: Runs of each tree, in turn; the shortest of them counts.
        only: An expression of pytest's -k that chooses benchmarks; empty: all.
    """
    best: list[dict[str, float]] = [{}, {}]
    with tempfile.TemporaryDirectory() as name, checkout(base, Path(name)) as tree:
        trees = [tree, HERE]
        for index in range(rounds):
            for which in (0, 1) if index % 2 == 0 else (1, 0):
                found = measure(trees[which], Path(name) / "record.json", only)
                for case, seconds in found.items():
                    best[which][case] = min(best[which].get(case, seconds), seconds)
    table = Table("benchmark", f"{base}, ms", "this tree, ms", "ratio")
    for case in sorted(best[0].keys() & best[1].keys()):
        old, new = best[0][case], best[1][case]
        table.add_row(case, f"{1e3 * old:.3f}", f"{1e3 * new:.3f}", f"{new / old:.3f}")
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main)
