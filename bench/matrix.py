"""Every loop that people write: features of models by loops by optimizers, each cell against a
reference.

    python bench/matrix.py [--pairs 400]

A cell trains a model with one feature, or two, in a loop for two steps, and its plain twin in a
plainer loop (bench/problems/cells.py). It is a *value* where both end at the same
parameters, a *refusal* where an error of REFUSALS comes, and else a fault. Operators are compared
with the dense Jᵀ M J of the twin, whose rows J are plain backward passes in float64.
"""

from __future__ import annotations

import itertools
import json
import platform
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import tyro
from problems.cells import REFUSALS, Cell, cell, curvature
from problems.model_features import FEATURES
from problems.training_loops import LOOPS, OPTIMIZERS

OUT = Path(__file__).parent / "results" / "matrix.json"


def cells(pairs: int) -> list[Cell]:
    """All cells of one feature, and as many drawn ones of two."""
    found = [
        cell((feature,), loop, optimizer, seed)
        for seed, (feature, loop, optimizer) in enumerate(
            itertools.product(FEATURES, LOOPS, OPTIMIZERS)
        )
    ]
    found += [
        curvature((feature,), seed, chunk)
        for seed, feature in enumerate(FEATURES)
        for chunk in (None, 3)
        if not (chunk and FEATURES[feature].by_batch)
    ]
    draw = random.Random(0)
    for seed in range(pairs):
        two = (draw.choice(list(FEATURES)), draw.choice(list(FEATURES)))
        found.append(cell(two, draw.choice(list(LOOPS)), draw.choice(list(OPTIMIZERS)), seed))
        found.append(curvature(two, seed))
    return found


def tallied(cells: list[Cell], key: Callable[[Cell], str]) -> list[list[str]]:
    """A row for each loop, feature or optimizer: values, refusals, faults, the largest error."""
    rows = []
    for name in dict.fromkeys(map(key, cells)):
        mine = [each for each in cells if key(each) == name]
        values = [each for each in mine if not each.refusal]
        rows.append(
            [
                name,
                str(len(values)),
                str(len(mine) - len(values)),
                str(sum(not each.right for each in mine)),
                f"{max((each.error for each in values), default=0):.0e}",
            ]
        )
    return rows


def refusals(cells: list[Cell]) -> list[list[str]]:
    """A row for each sentence that refuses: why, how often, and where."""
    rows = []
    for pattern, why in REFUSALS.items():
        mine = [each for each in cells if each.refusal and each.refused_by == pattern]
        if mine:
            where = Counter(each.features[0] for each in mine).most_common(1)[0][0]
            loop = Counter(each.loop for each in mine).most_common(1)[0][0]
            rows.append([mine[0].refusal, why, str(len(mine)), f"{where}; {loop}"])
    return rows


def save(cells: list[Cell], pairs: int) -> None:
    """Write results/matrix.json, a line a cell; the texts of refusals stand there once."""
    texts = list(dict.fromkeys(each.refusal for each in cells))
    rows = [
        [
            list(each.features), each.loop, each.optimizer, float(f"{each.error:.1e}"),
            each.allowed, texts.index(each.refusal),
        ]
        for each in cells
    ]  # fmt: skip
    head = {
        "command": f"python bench/matrix.py --pairs {pairs}",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "refusals": texts,
    }
    lines = ",\n".join(json.dumps(row) for row in rows)
    OUT.write_text(f'{json.dumps(head, indent=1)[:-2]},\n "cells": [\n{lines}\n]}}\n')


def load() -> tuple[dict[str, Any], list[Cell]]:
    """What :func:`save` wrote: the versions, and the cells."""
    record = json.loads(OUT.read_text())
    cells = [
        Cell(tuple(features), loop, optimizer, error, record["refusals"][refusal], allowed)
        for features, loop, optimizer, error, allowed, refusal in record["cells"]
    ]
    return record["versions"], cells


def main(pairs: int = 400) -> None:
    """Run the matrix and write results/matrix.json.

    Args:
        pairs: Cells of two features to draw.
    """
    torch.set_num_threads(1)
    found = cells(pairs)
    save(found, pairs)
    wrong = [each for each in found if not each.right]
    for each in wrong:
        print(each)
    refused = sum(bool(each.refusal) for each in found)
    print(f"{len(found)} cells, {refused} refused ({refused / len(found):.1%}), {len(wrong)} wrong")


if __name__ == "__main__":
    tyro.cli(main)
