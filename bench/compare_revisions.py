"""Two revisions on fixed inputs: the same numbers, counts and settings, and at what speed.

    python bench/compare_revisions.py --base REVISION

The base is checked out beside this tree; bench/fixed_steps.py of this tree runs against both in
turn, each in a process of its own. Numbers are compared bit for bit; where a sum was reordered the
largest relative difference is printed. Run directories of the base are resumed and evaluated by
both, and their settings given to both command lines. Beside this, how many files a reader opens who
follows one call in each of them (bench/walks.py).
"""

from __future__ import annotations

import ast
import configparser
import io
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import tokenize
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).resolve().parent.parent
RECORDER = Path(__file__).with_name("fixed_steps.py")
WALKS = Path(__file__).with_name("walks.py")
OUT = Path(__file__).parent / "results" / "revisions.json"
LAYOUT = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
)
Record = dict[str, tuple[list[Any], float]]


@contextmanager
def checkout(revision: str, folder: Path) -> Iterator[Path]:
    """The tree of a git revision, for as long as the context lasts."""
    tree = folder / "base"
    run = ["git", "-C", str(HERE), "worktree"]
    subprocess.run([*run, "add", "--quiet", "--detach", str(tree), revision], check=True)
    try:
        yield tree
    finally:
        subprocess.run([*run, "remove", "--force", str(tree)], check=True)


def metadata(tree: Path, folder: Path) -> Path:
    """A folder that registers the entry points of this very tree, whatever is installed."""
    project = tomllib.loads((tree / "pyproject.toml").read_text())["project"]
    info = folder / "natgrad-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: natgrad\nVersion: 0\n")
    points = configparser.ConfigParser(delimiters="=")
    points.read_dict(project["entry-points"])
    with (info / "entry_points.txt").open("w") as file:
        points.write(file)
    return folder


def against(tree: Path, meta: Path) -> dict[str, str]:
    """The environment in which Python imports the packages of this tree."""
    path = os.pathsep.join([str(tree), str(meta)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def walks(tree: Path, meta: Path) -> dict[str, dict[str, int]]:
    run = subprocess.run(
        [sys.executable, str(WALKS)],
        env=against(tree, meta),
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, dict[str, int]] = json.loads(run.stdout)
    return found


def lines(tree: Path) -> dict[str, dict[str, int]]:
    """Of each package: all lines, and those of code, without docstrings, comments and blanks."""
    counts = {}
    for package in ("natgrad", "rl_plugins"):
        texts = [path.read_text() for path in (tree / package).rglob("*.py")]
        counts[package] = {
            "all": sum(text.count("\n") for text in texts),
            "code": sum(len(lines_of_code(text)) for text in texts),
        }
    return counts


def lines_of_code(text: str) -> set[int]:
    kept: set[int] = set()
    docstrings = {
        node.body[0].lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node)
    }
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        string = token.type == tokenize.STRING and token.start[0] in docstrings
        if token.type not in LAYOUT and not string:
            kept.update(range(token.start[0], token.end[0] + 1))
    return kept


def record(tree: Path, meta: Path, out: Path, *options: str) -> Record:
    subprocess.run(
        [sys.executable, str(RECORDER), "--out", str(out), *options],
        env=against(tree, meta),
        check=True,
    )
    found: Record = torch.load(out)
    return found


def difference(old: list[Any], new: list[Any]) -> float:
    """0 where all is the same bit for bit, infinity where anything but a float differs, else the
    largest relative difference of two floats or vectors."""
    if len(old) != len(new):
        return math.inf
    worst = 0.0
    for a, b in zip(old, new, strict=True):
        if isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape:
            if a.numpy().tobytes() != b.numpy().tobytes():
                error, size = (a - b).double().norm(), a.double().norm()
                worst = max(worst, float(error / size) if size > 0 else math.inf)
        elif isinstance(a, float) and isinstance(b, float):
            if a != b and not (math.isnan(a) and math.isnan(b)):
                worst = max(worst, abs(a - b) / abs(a) if a else math.inf)
        elif a != b:
            return math.inf
    return worst


def main(base: str, rounds: int = 5, repeats: int = 20, only: str = "") -> int:
    """Compare this tree with another revision; write bench/results/revisions.json.

    Args:
        base: A revision, as git names it.
        rounds: Processes of each tree, in turn, whose times are compared; 0: numbers alone.
        repeats: Runs of a case in each of these.
        only: Part of the names of the cases; empty: all.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with checkout(base, folder) as tree:
            trees = [(tree, metadata(tree, folder / "old")), (HERE, metadata(HERE, folder / "new"))]
            before, after = (walks(*each) for each in trees)
            sizes = {"before": lines(tree), "after": lines(HERE)}
            runs = folder / "runs"
            out = folder / "record.pt"
            record(*trees[0], out, "--make-runs", str(runs), "--only", "nothing but the runs")
            old, new = (
                record(*each, out, "--old-runs", str(runs), "--only", only) for each in trees
            )
            speeds: dict[str, list[tuple[float, float]]] = {}
            # Kind by kind: what is compared runs within the same half minute.
            kinds = dict.fromkeys(case.split(":")[0] for case in old if "old run" not in case)
            for index, kind in itertools.product(range(rounds), kinds):
                order = [0, 1] if index % 2 == 0 else [1, 0]
                given = ("--repeats", str(repeats), "--only", only or f"{kind}: ")
                seconds: dict[int, Record] = {i: record(*trees[i], out, *given) for i in order}
                for case in seconds[0]:
                    pair = seconds[0][case][1], seconds[1][case][1]
                    speeds.setdefault(case, []).append(pair)
    rows = {}
    for case in old:
        pairs = speeds.get(case, [])
        shortest = [min((pair[i] for pair in pairs), default=math.nan) for i in (0, 1)]
        rows[case] = {
            "difference": difference(old[case][0], new[case][0]),
            "time_ratio": shortest[1] / shortest[0],
        }
    failed = {case: row for case, row in rows.items() if row["difference"]}
    errors = [case for case, (numbers, _) in old.items() if "Error" in str(numbers[0])]
    for case, row in rows.items():
        print(f"{case:60} {row['difference']:8.1e} {row['time_ratio']:6.3f}")
    print(f"{len(rows) - len(failed)} of {len(rows)} cases the same bit for bit")
    for case in errors:
        print(f"{case}: the base refuses it: {old[case][0][0]}")
    if not only:
        scenarios = {name: {"before": before[name], "after": after[name]} for name in before}
        result = {"base": base, "cases": rows, "walks": scenarios, "lines": sizes}
        OUT.write_text(json.dumps(result, indent=1) + "\n")
    return int(bool(errors) or any(math.isinf(row["difference"]) for row in failed.values()))


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
