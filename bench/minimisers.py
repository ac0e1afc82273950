"""Minimisers of one smooth function, ours and the peers, none of which can run on for ever."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torchmin
from problems.more_garbow_hillstrom import Problem
from torch import Tensor

from natgrad.optim import (
    LevenbergMarquardt,
    NonFiniteError,
    NonlinearCG,
    OptimizerStatus,
    TrustRegionNewton,
)

STEPS = 1_000
CALLS = 20_000  # of the objective: where a minimiser is asked to end
GRACE = 1_000  # further calls, after which it is stopped
PATIENCE = 3  # steps in a row without improvement, after which ours is taken at its word
METHODS = ("trust-ncg", "trust-exact", "newton-exact", "bfgs", "l-bfgs", "cg")


class DidNotStop(BaseException):
    """No ``Exception``: it must pass through minimisers that catch those."""


@contextmanager
def limited(cpu_seconds: float) -> Iterator[None]:
    """Raises :class:`DidNotStop` inside after that much CPU time: a busy machine changes nothing.

    Loops that no longer call the objective end too.
    """

    def stop(signum: int, frame: object) -> None:
        raise DidNotStop(f"more than {cpu_seconds:g} s of CPU time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@dataclass
class Objective:
    """``scale`` times Σ r². ``calls`` counts, ``solved_at`` is the first that was near a minimum.

    Raises :class:`DidNotStop` where there are too many.
    """

    problem: Problem
    scale: float
    calls: int = 0
    solved_at: int | None = None

    def residuals(self, x: Tensor) -> Tensor:
        """With ½ ‖·‖² the objective."""
        r = self.problem.residuals(x)
        self._seen(r.detach() @ r.detach())
        return math.sqrt(2 * self.scale) * r

    def __call__(self, x: Tensor) -> Tensor:
        value = self.problem.objective(x)
        self._seen(value.detach())
        return self.scale * value

    def solved_by(self, value: float) -> bool:
        """Whether the unscaled ``value`` is that of a listed minimum."""
        return any(
            value <= 1e-12 if least == 0 else abs(value - least) <= 1e-4 * least
            for least in self.problem.minima
        )

    def _seen(self, value: Tensor) -> None:
        self.calls += 1
        if self.calls > CALLS + GRACE:
            raise DidNotStop(f"more than {CALLS + GRACE:,} calls of the objective")
        if self.solved_at is None and self.solved_by(float(value)):
            self.solved_at = self.calls


@dataclass
class Answer:
    """``claims``: whether it says that x is a minimum; None where it says nothing."""

    x: Tensor
    claims: bool | None
    steps: int
    says: str = ""


def of_ours(kind: Callable[[list[Tensor]], Any], f: Objective) -> Answer:
    x = f.problem.start.clone().requires_grad_()
    optimizer = kind([x])

    def closure() -> Tensor:
        if isinstance(optimizer, LevenbergMarquardt):
            return f.residuals(x)
        optimizer.zero_grad()
        loss = f(x)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    idle = steps = 0
    claims = False
    while steps < STEPS and f.calls < CALLS and not claims:
        steps += 1
        try:
            optimizer.step(closure)
        except NonFiniteError as error:
            return Answer(x.detach(), False, steps, str(error))
        status = optimizer.last_step.status
        idle = idle + 1 if status is OptimizerStatus.NO_IMPROVEMENT else 0
        claims = status is OptimizerStatus.CONVERGED or idle == PATIENCE
    return Answer(x.detach(), claims, steps, status.name)


def of_torch(settings: dict[str, Any], f: Objective) -> Answer:
    x = f.problem.start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [x], max_iter=STEPS, max_eval=CALLS, line_search_fn="strong_wolfe", **settings
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = f(x)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return Answer(x.detach(), None, optimizer.state[x].get("n_iter", 0))


def of_torchmin(method: str, f: Objective) -> Answer:
    found = torchmin.minimize(f, f.problem.start.clone(), method, max_iter=STEPS)
    return Answer(found.x, bool(found.success), int(found.nit), found.message)


MINIMISERS: dict[str, Callable[[Objective], Answer]] = {
    **{kind.__name__: partial(of_ours, kind)
       for kind in (LevenbergMarquardt, TrustRegionNewton, NonlinearCG)},
    "torch LBFGS": partial(of_torch, {}),
    "torch LBFGS, tolerances 0": partial(of_torch, {"tolerance_grad": 0, "tolerance_change": 0}),
    **{f"torchmin {method}": partial(of_torchmin, method) for method in METHODS},
}  # fmt: skip
