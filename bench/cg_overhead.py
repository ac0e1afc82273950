"""What `cg` costs beyond its products and vector operations: pairs of it and of a bare loop.

    .venv/bin/python bench/cg_overhead.py

One thread, float32, dense n = 1,500, 20 iterations; the two take turns, so that drift hits both.
"""

from __future__ import annotations

import json
import platform
import statistics
import timeit
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from natgrad import cg

N, ITERATIONS, PAIRS = 1500, 20, 500
OUT = Path(__file__).parent / "results" / "cg_overhead.json"


def bare(A: Tensor, b: Tensor) -> Tensor:
    x, r = torch.zeros_like(b), b
    p, rr = r, r @ r
    for _ in range(ITERATIONS):
        Ap = A @ p
        alpha = rr / (p @ Ap)
        x, r = x + alpha * p, r - alpha * Ap
        rr_next = r @ r
        if rr_next < 1e-20:
            break
        p, rr = r + rr_next / rr * p, rr_next
    return x


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(N, N, generator=generator))
    A = (basis * torch.logspace(0, -2, N)) @ basis.mT
    A, b = (A + A.mT) / 2, torch.randn(N, generator=generator)
    ratios = []
    for _ in range(PAIRS):
        loop = timeit.timeit(lambda: bare(A, b), number=1)
        ours = timeit.timeit(lambda: cg(A, b, rtol=0.0, max_iterations=ITERATIONS), number=1)
        ratios.append(ours / loop)
    lower, median, upper = statistics.quantiles(ratios)
    record = {
        "command": "python bench/cg_overhead.py",
        "versions": {"python": platform.python_version(), "torch": version("torch")},
        "ratio": {"median": median, "quartiles": [lower, upper], "pairs": PAIRS},
    }
    OUT.write_text(json.dumps(record, indent=2) + "\n")
    print(f"cg / bare loop: {median:.2f} (quartiles {lower:.2f} to {upper:.2f})")


if __name__ == "__main__":
    main()
