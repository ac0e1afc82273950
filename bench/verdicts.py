"""The kit's verdict on natgrad's solvers and on those of others, each failure with code that shows
it without natgrad, and what that code prints.

    .venv/bin/python bench/verdicts.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from races import record
from subjects import MINIMISERS, OPTIMIZERS, SOLVERS

from natgrad.testing import Outcome, Verdict, checks_for, subject
from natgrad.testing.adapters import load, torchmin
from natgrad.testing.counterexample import script

PEERS: dict[str, tuple[str, ...]] = {
    "solver": (
        "scipy.sparse.linalg:cg", "scipy.sparse.linalg:minres",
        "linear_operator.utils.linear_cg:linear_cg",
        "sb3_contrib.common.utils:conjugate_gradient_solver",
    ),
    "optimizer": ("torch.optim:LBFGS", "torch.optim:Adam", "torchmin.optim:Minimizer"),
}  # fmt: skip


PATIENCE = 20  # seconds for a script
# Some peers need 60,000 operations of torch to be found endless.
EXAMPLES = {"solver": 25, "minimiser": 8, "optimizer": 8}


def subjects(kind: str) -> list[Any]:
    """Ours first, then the peers."""
    if kind == "minimiser":
        return [*MINIMISERS, *map(torchmin.minimiser, torchmin.METHODS)]
    ours = OPTIMIZERS if kind == "optimizer" else SOLVERS[kind]
    return [*ours, *(subject(load(target), kind) for target in PEERS.get(kind, ()))]


@dataclass(frozen=True)
class Arguments:
    """What to check."""

    kinds: tuple[str, ...] = ("solver", "minimiser", "optimizer")
    """Which kinds."""
    out: Path = Path(__file__).parent / "results" / "verdicts.json"
    """Where the verdicts go."""


def entry(verdict: Verdict, tested: Any) -> dict[str, Any]:
    code = script(verdict, tested) if verdict.outcome is Outcome.FAILED else None
    return {
        "identifier": verdict.check.identifier,
        "outcome": verdict.outcome.name.lower(),
        "counterexample": verdict.counterexample,
        "reason": verdict.reason,
        **({} if code is None else {"code": code, "prints": printed(code)}),
    }


def printed(code: str) -> str:
    """What the script prints, in an interpreter of its own, or the error that it ends with."""
    command = [sys.executable, "-W", "ignore", "-c", code]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        return f"nothing: it still ran after {PATIENCE} s"
    return done.stdout if not done.returncode else done.stderr.strip().splitlines()[-1]


def main(arguments: Arguments) -> None:
    warnings.simplefilter("ignore")  # of the subjects'
    torch.set_num_threads(1)
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for kind in arguments.kinds:
        for tested in subjects(kind):
            entries = []
            for check in checks_for(kind):
                verdict = check.examine(tested, examples=EXAMPLES[kind])
                if verdict.outcome is Outcome.FAILED:
                    print(f"{tested.name}: {check}: {verdict.counterexample}: {verdict.reason}")
                entries.append(entry(verdict, tested))
            found.setdefault(kind, {})[tested.name] = entries
    packages = ("torch", "numpy", "scipy", "linear_operator", "sb3-contrib", "pytorch-minimize")
    result = record("python bench/verdicts.py", 1, packages, kinds=found)
    arguments.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
