"""How often a solver says "converged" above its tolerance: SciPy's cg and ours.

    .venv/bin/python bench/cg_honesty.py

Random symmetric positive definite systems with log-uniform spectra, in float32 and float64. The
residual that judges is computed in float64 from the rounded data. "false" counts claims of
convergence whose residual is above the tolerance, "worst" is the largest excess in tolerances.
"""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import scipy.sparse.linalg
import torch
import tyro
from rich.console import Console
from rich.table import Table

from natgrad import Status, cg

CONDITIONS = (3.0, 1e1, 1e2, 1e3, 1e5)
TOLERANCES = {torch.float32: (1e-7, 3e-7, 1e-6, 1e-5), torch.float64: (1e-15, 1e-12, 1e-8, 1e-6)}


@dataclass(frozen=True)
class Arguments:
    """What to run."""

    systems: int = 50
    """Systems for each dtype, condition and tolerance."""
    seed: int = 0
    """Seed of the systems."""
    out: Path = Path(__file__).parent / "results" / "cg_honesty.json"
    """Where the figures go."""


@dataclass
class Tally:
    claims: int = 0
    false: int = 0
    worst: float = 0.0

    def count(self, claimed: bool, excess: float) -> None:
        if claimed:
            self.claims += 1
            self.false += excess > 1
            self.worst = max(self.worst, excess)


def system(
    rng: np.random.Generator, condition: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    n = int(rng.integers(2, 80))
    basis, _ = np.linalg.qr(rng.standard_normal((n, n)))
    A = (basis * np.logspace(0, -np.log10(condition), n)) @ basis.T
    b = rng.standard_normal(n)
    return torch.tensor((A + A.T) / 2, dtype=dtype), torch.tensor(b, dtype=dtype)


def relative_residual(A: torch.Tensor, x: torch.Tensor, b: torch.Tensor) -> float:
    A, x, b = A.double(), x.double(), b.double()
    return float((b - A @ x).norm() / b.norm())


def main(arguments: Arguments) -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(arguments.seed)
    tallies: dict[str, dict[str, Tally]] = {}
    for dtype, tolerances in TOLERANCES.items():
        for condition in CONDITIONS:
            row = tallies.setdefault(
                f"{str(dtype).removeprefix('torch.')}, condition {condition:g}",
                {"scipy": Tally(), "natgrad": Tally()},
            )
            for rtol in tolerances:
                for _ in range(arguments.systems):
                    A, b = system(rng, condition, dtype)
                    x, info = scipy.sparse.linalg.cg(A.numpy(), b.numpy(), rtol=rtol)
                    excess = relative_residual(A, torch.from_numpy(x), b) / rtol
                    row["scipy"].count(info == 0, excess)
                    s = cg(A, b, rtol=rtol)
                    excess = relative_residual(A, s.x, b) / rtol
                    row["natgrad"].count(s.status is Status.CONVERGED, excess)

    record = {
        "command": f"python bench/cg_honesty.py --systems {arguments.systems} "
        f"--seed {arguments.seed}",
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "scipy", "numpy")},
        },
        "systems_per_row": arguments.systems * 4,
        "rows": {
            name: {solver: asdict(tally) for solver, tally in row.items()}
            for name, row in tallies.items()
        },
    }
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")
    table = Table("systems", "scipy: claims", "false", "worst", "natgrad: claims", "false", "worst")
    for name, row in tallies.items():
        cells = [
            cell
            for tally in row.values()
            for cell in (str(tally.claims), str(tally.false), f"{tally.worst:.2f}")
        ]
        table.add_row(name, *cells)
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
