"""The 35 problems of Moré, Garbow & Hillstrom at three scales of the objective: ours and the peers.

    .venv/bin/python bench/more_garbow_hillstrom.py

Every minimiser has 1,000 steps of its own, 20,000 calls of the objective and a minute of CPU time;
what goes on beyond the last two is stopped from outside. Solved: the unscaled objective is within
1e-4 of one of the listed minima, relatively, or at most 1e-12 where that is 0, whatever the
minimiser says of it. What it says of the rest: ours claims a minimum by CONVERGED, and by
NO_IMPROVEMENT three steps in a row; pytorch-minimize by ``success``; torch's LBFGS says nothing. A
claim is loose, not false, where the objective has fallen to the least minimum but for 1e-4 of the
way.
"""

from __future__ import annotations

import json
import math
import platform
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import tyro
from minimisers import MINIMISERS, Answer, DidNotStop, Objective, limited
from problems.more_garbow_hillstrom import PROBLEMS
from rich.console import Console
from rich.table import Table

SCALES = (1e-12, 1.0, 1e12)


class Verdict(Enum):
    SOLVED = "solved"
    HONEST = "honest failure"
    SILENT = "silent failure"
    LOOSE = "loose success"
    FALSE = "false success"
    NAN = "NaN"
    EXCEPTION = "exception"
    ENDLESS = "did not stop"


@dataclass(frozen=True)
class Arguments:
    """What to run."""

    problems: tuple[int, ...] = tuple(problem.number for problem in PROBLEMS)
    """Numbers of the paper."""
    limit: float = 60.0
    """CPU seconds for one minimiser on one problem."""
    out: Path = Path(__file__).parent / "results" / "more_garbow_hillstrom.json"
    """Where the figures go."""


@dataclass(frozen=True)
class Attempt:
    """``value`` is the unscaled objective's, NaN where nothing came back; ``solved_at`` the first
    call of ``calls`` that was near a minimum."""

    problem: int
    verdict: Verdict
    value: float
    steps: int
    calls: int
    solved_at: int | None
    cpu_seconds: float
    says: str


def attempt(minimise: Callable[[Objective], Answer], f: Objective, limit: float) -> Attempt:
    start, value, steps = time.process_time(), math.nan, 0
    try:
        with limited(limit):
            answer = minimise(f)
    except DidNotStop as error:
        verdict, says = Verdict.ENDLESS, str(error)
    except Exception as error:
        verdict, says = Verdict.EXCEPTION, f"{type(error).__name__}: {error}"
    else:
        if bool(answer.x.isfinite().all()):
            value = float(f.problem.objective(answer.x))
        verdict, steps, says = judged(f, value, answer.claims), answer.steps, answer.says
    seconds = round(time.process_time() - start, 3)
    value = float(f"{value:.6g}")
    number = f.problem.number
    return Attempt(number, verdict, value, steps, f.calls, f.solved_at, seconds, says[:100])


def judged(f: Objective, value: float, claims: bool | None) -> Verdict:
    if math.isnan(value):
        return Verdict.NAN
    if f.solved_by(value):
        return Verdict.SOLVED
    if not claims:
        return Verdict.SILENT if claims is None else Verdict.HONEST
    start, least = float(f.problem.objective(f.problem.start)), f.problem.minima[0]
    return Verdict.LOOSE if value - least <= 1e-4 * (start - least) else Verdict.FALSE


def main(arguments: Arguments) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # deprecated calls in torchmin
    problems = [problem for problem in PROBLEMS if problem.number in arguments.problems]
    rows: dict[str, dict[str, list[Attempt]]] = {}
    for name, minimise in MINIMISERS.items():
        for scale in SCALES:
            found = [
                attempt(minimise, Objective(problem, scale), arguments.limit)
                for problem in problems
            ]
            rows.setdefault(name, {})[f"{scale:g}"] = found
            counts = Counter(entry.verdict.value for entry in found)
            print(f"{name}, {scale:g}: {dict(counts)}", flush=True)

    numbers = " ".join(str(problem.number) for problem in problems)
    record = {
        "command": f"python bench/more_garbow_hillstrom.py --limit {arguments.limit:g}"
        + (f" --problems {numbers}" if len(problems) < len(PROBLEMS) else ""),
        "machine": {"processor": platform.machine(), "system": platform.system(), "threads": 1},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "pytorch-minimize", "scipy")},
        },
        "problems": len(problems),
        "rows": rows,
    }
    text = json.dumps(
        record, indent=1, default=lambda x: x.value if isinstance(x, Enum) else asdict(x)
    )
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(text + "\n")

    table = Table(*HEADER)
    for row in table_rows(json.loads(text)):
        table.add_row(*row)
    Console(width=180).print(f"of {len(problems)} problems", table)


FAILURES = [verdict.value for verdict in Verdict if verdict is not Verdict.SOLVED]
HEADER = ["", *(f"solved at {scale:g}" for scale in SCALES), "the same ones", *FAILURES, "calls"]


def table_rows(record: dict[str, Any]) -> list[list[str]]:
    """Failures are over all scales; calls, the median until solved, over all that were."""
    found = []
    for name, by_scale in record["rows"].items():
        solved = [
            {entry["problem"] for entry in entries if entry["verdict"] == Verdict.SOLVED.value}
            for entries in by_scale.values()
        ]
        every = [entry for entries in by_scale.values() for entry in entries]
        counts = Counter(entry["verdict"] for entry in every)
        calls = [entry["solved_at"] for entry in every if entry["solved_at"] is not None]
        found.append([
            name, *(str(len(numbers)) for numbers in solved),
            "yes" if all(numbers == solved[0] for numbers in solved) else "no",
            *(str(counts[verdict]) for verdict in FAILURES),
            f"{statistics.median(calls):.0f}" if calls else "–",
        ])  # fmt: skip
    return found


if __name__ == "__main__":
    main(tyro.cli(Arguments))
