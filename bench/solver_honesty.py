"""How often a solver says "converged" above its tolerance: the field's and ours.

    .venv/bin/python bench/solver_honesty.py

Random symmetric systems with log-uniform spectra, definite and indefinite, conditions 1e1 to 1e10,
A and b each scaled by 1e-20 to 1e20 (1e-6 to 1e6 in float32, whose range x must not leave), float32
and float64, tolerances within and beyond the reach of rounding. The residual that judges is
computed in float64 from the rounded data. "solved" counts the true claims, "false" those whose
residual is above the tolerance, "worst" is the largest such residual in tolerances.
"""

from __future__ import annotations

import json
import math
import platform
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse.linalg
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from natgrad import Status, cg
from natgrad.solvers import cholesky, lanczos, minres

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from linear_operator import settings
    from linear_operator.utils.linear_cg import linear_cg

CONDITIONS = (1e1, 1e3, 1e5, 1e10)
TOLERANCES = {torch.float32: (1e-6, 1e-4), torch.float64: (1e-14, 1e-10, 1e-6)}
DECADES = {torch.float32: 6, torch.float64: 20}
LIMIT = 2_000


@dataclass(frozen=True)
class Arguments:
    """What to run."""

    systems: int = 20
    """Systems for each dtype, kind, condition and tolerance."""
    seed: int = 0
    """Seed of the systems."""
    out: Path = Path(__file__).parent / "results" / "solver_honesty.json"
    """Where the figures go."""


@dataclass
class Tally:
    solved: int = 0
    false: int = 0
    worst: float = 0.0

    def count(self, claimed: bool, excess: float) -> None:
        if claimed:
            wrong = not excess <= 1  # a NaN solution that is called converged is false too
            self.false += wrong
            self.solved += not wrong
            self.worst = max(self.worst, excess if math.isfinite(excess) else math.inf)


def scipys(solver: Callable[..., Any]) -> Callable[[Tensor, Tensor, float], tuple[Tensor, bool]]:
    def solve(A: Tensor, b: Tensor, rtol: float) -> tuple[Tensor, bool]:
        x, info = solver(A.numpy(), b.numpy(), rtol=rtol, maxiter=LIMIT)
        return torch.as_tensor(x), info == 0

    return solve


def gpytorchs(A: Tensor, b: Tensor, rtol: float) -> tuple[Tensor, bool]:
    """It warns where it did not converge; no warning is its claim."""
    with settings.max_cg_iterations(LIMIT), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        x = linear_cg(A.matmul, b.unsqueeze(1), tolerance=rtol, max_iter=LIMIT)
    return x.squeeze(1), not caught


def ours(solver: Callable[..., Any]) -> Callable[[Tensor, Tensor, float], tuple[Tensor, bool]]:
    def solve(A: Tensor, b: Tensor, rtol: float) -> tuple[Tensor, bool]:
        solution = solver(A, b, rtol)
        return solution.x, solution.status is Status.CONVERGED

    return solve


SOLVERS = {
    "scipy cg": scipys(scipy.sparse.linalg.cg),
    "scipy minres": scipys(scipy.sparse.linalg.minres),
    "gpytorch linear_cg": gpytorchs,
    "natgrad cg": ours(lambda A, b, rtol: cg(A, b, rtol=rtol, max_iterations=LIMIT)),
    "natgrad minres": ours(lambda A, b, rtol: minres(A, b, rtol=rtol, max_iterations=LIMIT)),
    "natgrad lanczos": ours(lambda A, b, rtol: lanczos(A, b, rtol=rtol).solve()),
    "natgrad cholesky": ours(lambda A, b, rtol: cholesky(A, b, rtol=rtol)),
}


def system(
    rng: np.random.Generator, condition: float, definite: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    n = int(rng.integers(2, 60))
    basis, _ = np.linalg.qr(rng.standard_normal((n, n)))
    spectrum = np.logspace(0, -np.log10(condition), n)
    if not definite:
        spectrum *= rng.choice((-1, 1), n)
    A = (basis * spectrum) @ basis.T
    A_scale, b_scale = 10.0 ** rng.uniform(-DECADES[dtype], DECADES[dtype], 2)
    b = b_scale * rng.standard_normal(n)
    return torch.tensor(A_scale * (A + A.T) / 2, dtype=dtype), torch.tensor(b, dtype=dtype)


def relative_residual(A: Tensor, x: Tensor, b: Tensor) -> float:
    A, x, b = A.double(), x.double(), b.double()
    return float((b - A @ x).norm() / b.norm())


def main(arguments: Arguments) -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(arguments.seed)
    tallies: dict[str, dict[str, Tally]] = {}
    systems = 0
    for dtype, tolerances in TOLERANCES.items():
        for definite in (True, False):
            for condition in CONDITIONS:
                kind = "definite" if definite else "indefinite"
                name = f"{str(dtype).removeprefix('torch.')}, {kind}, condition {condition:g}"
                row = tallies.setdefault(name, {solver: Tally() for solver in SOLVERS})
                for rtol in tolerances:
                    for _ in range(arguments.systems):
                        A, b = system(rng, condition, definite, dtype)
                        systems += 1
                        for solver, solve in SOLVERS.items():
                            with np.errstate(all="ignore"):
                                x, claimed = solve(A, b, rtol)
                            row[solver].count(claimed, relative_residual(A, x, b) / rtol)

    record = {
        "command": f"python bench/solver_honesty.py --systems {arguments.systems} "
        f"--seed {arguments.seed}",
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "scipy", "numpy", "linear_operator")},
        },
        "systems": systems,
        "rows": {
            name: {solver: asdict(tally) for solver, tally in row.items()}
            for name, row in tallies.items()
        },
    }
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")
    table = Table("solved / false (worst)", *SOLVERS)
    for name, row in tallies.items():
        table.add_row(name, *(f"{t.solved} / {t.false} ({t.worst:.2g})" for t in row.values()))
    Console(width=200).print(f"{systems} systems", table)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
