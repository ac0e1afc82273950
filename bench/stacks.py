"""Twenty steps of each optimizer, as it is by default, on losses and networks that people train.

    pip install '.[frameworks]' && python bench/stacks.py

The loss of all batches in evaluation mode before and after, or the sentence of a refusal. An error
that natgrad did not raise itself is a crash. Adam, at 1e-3, stands beside as a measure of the task.
"""

from __future__ import annotations

import json
import math
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import tyro
from problems import library_stacks, stacks
from problems.stacks import Stack
from torch import Tensor

from natgrad.curvature.metrics import output_metric
from natgrad.optim import (
    KFAC,
    AdaptiveKFAC,
    HessianFree,
    LevenbergMarquardt,
    NaturalGradient,
    NonlinearCG,
    TrustRegionNewton,
)
from natgrad.optim.likelihoods import LIKELIHOODS

OUT = Path(__file__).parent / "results" / "stacks.json"
PACKAGES = ("torch", "transformers", "peft", "diffusers", "torch_geometric")
STEPS, SECONDS = 20, 60.0


def _metric(stack: Stack) -> Any:
    named = stack.likelihood
    likelihood = LIKELIHOODS[named] if isinstance(named, str) else named
    return lambda outputs: output_metric(likelihood(outputs))


OPTIMIZERS: dict[str, Callable[[Stack], torch.optim.Optimizer]] = {
    "NaturalGradient": lambda s: NaturalGradient(s.model, likelihood=s.likelihood),
    "HessianFree": lambda s: HessianFree(s.model, loss=_metric(s)),
    "KFAC": lambda s: KFAC(s.model, likelihood=s.likelihood),
    "E-KFAC": lambda s: KFAC(s.model, likelihood=s.likelihood, corrected=True),
    "AdaptiveKFAC": lambda s: AdaptiveKFAC(s.model, likelihood=s.likelihood),
    "LevenbergMarquardt": lambda s: LevenbergMarquardt(s.model),
    "TrustRegionNewton": lambda s: TrustRegionNewton(s.model.parameters()),
    "NonlinearCG": lambda s: NonlinearCG(s.model.parameters()),
    "Adam": lambda s: torch.optim.Adam(s.model.parameters(), lr=1e-3),
}


@dataclass
class Outcome:
    stack: str
    optimizer: str
    before: float = math.nan
    after: float = math.nan
    steps: int = 0
    seconds: float = 0.0
    refusal: str = ""
    crash: str = ""
    statuses: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        if self.crash:
            return "crash"
        if self.refusal:
            return "refused"
        return "falls" if self.after < self.before else "rises"


def total_loss(stack: Stack) -> float:
    """The mean over the batches, with one and the same noise where the model draws some."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        stack.model.eval()
        value = sum(float(stack.loss(stack.model, i)) for i in range(3)) / 3
        stack.model.train()
        return value


def closure(stack: Stack, optimizer: Any, i: int) -> Tensor:
    if stack.residuals is not None and isinstance(optimizer, LevenbergMarquardt):
        return stack.residuals(stack.model, i)
    optimizer.zero_grad()
    loss = stack.loss(stack.model, i)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


def train(stack: Stack, optimizer: Any, outcome: Outcome) -> None:
    start = time.process_time()
    for i in range(STEPS):
        optimizer.step(partial(closure, stack, optimizer, i))
        outcome.steps += 1
        if report := getattr(optimizer, "last_step", None):  # Adam has none
            name = report.status.name
            outcome.statuses[name] = outcome.statuses.get(name, 0) + 1
        if (spent := time.process_time() - start) > SECONDS:
            break
    outcome.seconds = spent / outcome.steps


def cell(name: str, make: Callable[[], Stack], kind: str) -> Outcome:
    outcome = Outcome(name, kind)
    torch.manual_seed(0)
    stack = make()
    outcome.before = total_loss(stack)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            train(stack, OPTIMIZERS[kind](stack), outcome)
        except Exception as error:
            own = "natgrad" in traceback.extract_tb(error.__traceback__)[-1].filename
            setattr(outcome, "refusal" if own else "crash", f"{type(error).__name__}: {error}")
    ours = {str(w.message) for w in caught if "/bench/" in w.filename or "natgrad" in w.filename}
    outcome.warnings = sorted(ours)
    outcome.after = total_loss(stack)
    return outcome


def main(only: str = "") -> None:
    """Train every stack with every optimizer and write results/stacks.json.

    Parameters
    ----------
    only
        The stacks whose name contains it; the data file is left alone then.
    """
    torch.set_num_threads(1)
    outcomes = []
    for name, make in chain(stacks.stacks(), library_stacks.stacks()):
        if only not in name:
            continue
        for kind in OPTIMIZERS:
            outcome = cell(name, make, kind)
            outcomes.append(outcome)
            print(
                f"{name:28}{kind:20}{outcome.verdict:8}{outcome.before:8.4f}{outcome.after:8.4f}",
                f"{outcome.seconds * 1e3:6.0f} ms {outcome.refusal or outcome.crash}",
                flush=True,
            )
    if not only:
        result = {
            "versions": {package: version(package) for package in PACKAGES},
            "outcomes": [asdict(o) | {"verdict": o.verdict} for o in outcomes],
        }
        OUT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
