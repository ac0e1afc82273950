"""Every loop that people write: features of models by loops by optimizers, each cell against a
reference.

    python bench/matrix.py [--pairs 400]

A cell trains a model with one feature, or two, in a loop for two steps, and its plain twin in a
plainer loop (bench/problems/training_loops.py). It is a *value* where both end at the same
parameters, a *refusal* where an error of REFUSALS comes, and else a fault. Operators are compared
with the dense Jᵀ M J of the twin, whose rows J are plain backward passes in float64.
"""

from __future__ import annotations

import itertools
import json
import platform
import random
import re
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor
from torch.distributions import Categorical

from bench.problems.model_features import CLASSES, FEATURES, WIDTH, logits, pair
from bench.problems.training_loops import LOOPS, OPTIMIZERS, Run
from natgrad import Fisher
from natgrad.flat import as_real

OUT = Path(__file__).parent / "results" / "matrix.json"
SAMPLES = 8
# What a step amplifies rounding by: the condition of a damped curvature, 1 / λ at most.
AMPLIFIED = 1e6
# The sentences that refuse, and why nothing better can be had.
REFUSALS = {
    r"use_reentrant=True hides the layers": "A reentrant checkpoint ends the graph of the outputs: "
    "curvature behind it would be zero.",
    r"once_differentiable": "The second derivative that a product takes does not exist, by the "
    "author's own word.",
    r"not implemented for 'Complex": "torch's GradScaler has no kernel for complex gradients.",
    r"not that of a sum or mean of squared errors": "LevenbergMarquardt reads residuals off the "
    "gradient in the outputs, and a hook on parameters changes it afterwards. Residuals from the "
    "closure are a value.",
    r"needs step\(closure\)": "It measures the loss at several points, which takes a closure.",
    r"called no loss\.backward\(\)": "Exact curvature is that of the graph of the closure's loss.",
    r"computed no gradient": "A search along gradients asks the closure for one at each point.",
    r"no second derivative": "The kernel has none, and the loop's own forward pass chose it.",
}


@dataclass(frozen=True)
class Cell:
    """What came of a cell: ``error``, the largest difference relative to the way that was gone, or
    ``refusal``, the first sentence of the error."""

    features: tuple[str, ...]
    loop: str
    optimizer: str
    error: float = 0.0
    refusal: str = ""
    allowed: float = 0.0

    @property
    def right(self) -> bool:
        if self.refusal:
            return any(re.search(pattern, self.refusal) for pattern in REFUSALS)
        return self.error <= self.allowed


def cell(features: tuple[str, ...], loop: str, optimizer: str, seed: int) -> Cell:
    """Run one cell, and its reference."""
    written, kind = LOOPS[loop], OPTIMIZERS[optimizer]
    dtype = torch.float32 if written.half else torch.float64
    model, twin = pair(features, seed, dtype, several=_gives_a_dict(seed, optimizer))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SAMPLES, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    t = torch.arange(SAMPLES) % CLASSES
    start = _vector(twin)
    by_batch = kind.by_batch or any(FEATURES[name].by_batch for name in features)
    itself = (written.parts and by_batch) or (written.without_layers and kind.layers)
    reference = written.act if itself else written.reference
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about its own compiler and schedulers
        torch.manual_seed(seed)
        try:
            run = Run(kind, model, x, t)
            written.act(run)
        except (RuntimeError, ValueError, TypeError) as refused:
            return Cell(features, loop, optimizer, refusal=str(refused).split("\n")[0][:300])
        torch.manual_seed(seed)
        plain = Run(kind, twin, x, t, given=run.given)
        reference(plain)
    way = float((_vector(twin) - start).abs().max())
    error = float((_vector(model) - _vector(twin)).abs().max())
    allowed = AMPLIFIED * torch.finfo(dtype).eps
    return Cell(features, loop, optimizer, error / way if way else error, "", min(allowed, 0.05))


def curvature(features: tuple[str, ...], seed: int, chunk_size: int | None = None) -> Cell:
    """The Fisher matrix of a model beside that of its twin, by plain backward passes."""
    name = "F @ I" if chunk_size is None else "F @ I in chunks"
    model, twin = pair(features, seed, torch.float64, several=bool(seed % 2))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SAMPLES, WIDTH, generator=generator, dtype=torch.float64)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        try:
            found = Fisher(
                lambda x: Categorical(logits=logits(model(x))),
                list(model.parameters()),
                data=x,
                chunk_size=chunk_size,
            ).to_dense()
        except (RuntimeError, ValueError, TypeError) as refused:
            return Cell(features, name, "Fisher", refusal=str(refused).split("\n")[0][:300])
        torch.manual_seed(seed)
        expected = _dense(twin, x)
    error = float((found - expected).abs().max() / expected.abs().max())
    return Cell(features, name, "Fisher", error, "", 1e4 * torch.finfo(torch.float64).eps)


def _dense(twin: torch.nn.Module, x: Tensor) -> Tensor:
    y = logits(twin(x))
    parameters = list(twin.parameters())
    trained = [p for p in parameters if p.requires_grad]
    rows = []
    for output in y.flatten():
        found = torch.autograd.grad(output, trained, retain_graph=True, allow_unused=True)
        known = dict(zip(trained, found, strict=True))
        pieces = [known.get(p) for p in parameters]
        rows.append(
            torch.cat(
                [
                    as_real(torch.zeros_like(p) if piece is None else piece).flatten()
                    for p, piece in zip(parameters, pieces, strict=True)
                ]
            )
        )
    J = torch.stack(rows).reshape(SAMPLES, CLASSES, -1)
    p = y.detach().softmax(1)
    M = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    return torch.einsum("ica,icd,idb->ab", J, M, J) / SAMPLES


def _gives_a_dict(seed: int, optimizer: str) -> bool:
    return bool(seed % 2) and not OPTIMIZERS[optimizer].squares


def _vector(model: torch.nn.Module) -> Tensor:
    return torch.cat([as_real(p.detach()).flatten() for p in model.parameters()])


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


def main(pairs: int = 400) -> None:
    """Run the matrix and write results/matrix.json.

    Args:
        pairs: Cells of two features to draw.
    """
    torch.set_num_threads(1)
    found = cells(pairs)
    result = {
        "command": f"python bench/matrix.py --pairs {pairs}",
        "machine": platform.machine(),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "cells": [asdict(each) | {"right": each.right} for each in found],
    }
    OUT.write_text(json.dumps(result, indent=0) + "\n")
    wrong = [each for each in found if not each.right]
    for each in wrong:
        print(each)
    refused = sum(bool(each.refusal) for each in found)
    print(f"{len(found)} cells, {refused} refused ({refused / len(found):.1%}), {len(wrong)} wrong")


if __name__ == "__main__":
    tyro.cli(main)
