"""One cell of the matrix of model features, loops and optimizers, and its reference."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from natgrad import Fisher
from natgrad.flat import as_real

from .model_features import CLASSES, FEATURES, WIDTH, logits, pair
from .training_loops import LOOPS, OPTIMIZERS, Run

SAMPLES = 8
# What two steps amplify rounding by: the condition of a damped curvature, 1e4 at most, twice.
AMPLIFIED = 1e8
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
    def refused_by(self) -> str | None:
        """The pattern of REFUSALS that knows the refusal."""
        return next((known for known in REFUSALS if re.search(known, self.refusal)), None)

    @property
    def right(self) -> bool:
        return self.refused_by is not None if self.refusal else self.error <= self.allowed


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


def _dense(twin: nn.Module, x: Tensor) -> Tensor:
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


def _vector(model: nn.Module) -> Tensor:
    return torch.cat([as_real(p.detach()).flatten() for p in model.parameters()])
