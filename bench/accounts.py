"""Whether a step keeps the KL divergence that it was allowed, and says what it was.

    .venv/bin/python bench/accounts.py

A thousand generated networks and batches for each optimizer, three steps on each; a thousand
policies and batches for NPG and TRPO, some of them nearly certain of their actions. Nothing was
tuned on any of them. See bench/problems/accounts.py.
"""

from __future__ import annotations

import json
import math
import platform
from importlib.metadata import version
from pathlib import Path

import torch
import tyro
from problems.accounts import OPTIMIZERS, PLUGINS, Account, optimizer_steps, plugin_step
from rich.progress import track

OUT = Path(__file__).parent / "results" / "accounts.json"


def tally(accounts: list[Account]) -> dict[str, float]:
    accepted = [account for account in accounts if account.accepted]
    return {
        "steps": len(accounts),
        "accepted": len(accepted),
        "over the bound": sum(not account.kept for account in accepted),
        "reported otherwise": sum(not account.true for account in accepted),
        "largest share of the bound": max(a.measured / a.bound for a in accepted),
        "median share of the bound": sorted(a.measured / a.bound for a in accepted)[
            len(accepted) // 2
        ],
        "largest error of a report, in its rounding": max(
            abs(a.reported - a.measured) / a.rounding for a in accepted if a.rounding
        ),
    }


def main(models: int = 1000, first_seed: int = 0) -> None:
    """Measure and write bench/results/accounts.json.

    Args:
        models: Networks or policies for each contestant.
        first_seed: The seed of the first; the others follow it.
    """
    torch.set_num_threads(1)
    seeds = range(first_seed, first_seed + models)
    rows = {}
    for name in OPTIMIZERS:
        found = [each for seed in track(seeds, name) for each in optimizer_steps(name, seed)]
        rows[name] = tally(found)
    for name in PLUGINS:
        rows[name] = tally([plugin_step(name, seed) for seed in track(seeds, name)])
    assert all(math.isfinite(value) for row in rows.values() for value in row.values())
    OUT.write_text(
        json.dumps(
            {
                "command": f"bench/accounts.py --models {models} --first-seed {first_seed}",
                "machine": platform.machine(),
                "python": platform.python_version(),
                "torch": version("torch"),
                "models": models,
                "rows": rows,
            },
            indent=1,
        )
        + "\n"
    )


if __name__ == "__main__":
    tyro.cli(main)
