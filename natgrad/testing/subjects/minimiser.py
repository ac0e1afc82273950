"""Anyone's function that minimises a function of a vector."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from natgrad.testing.cases.objective import Objective
from natgrad.testing.limited import Limited
from natgrad.testing.subjects.naming import name_of

OPERATIONS = 60_000  # of torch; methods written in it take up to 20,000 to Rosenbrock's minimum


@dataclass(frozen=True)
class Answer:
    """``success`` is the claim that ``x`` is a minimum; None where nothing is said."""

    x: Tensor
    success: bool | None
    message: str = ""


@dataclass(frozen=True)
class Minimiser:
    """``call(f, start)`` gives an :class:`Answer`, or an object with ``x`` and ``success``, of a
    function f (n,) -> () of torch with derivatives.

    ``offers`` holds ``rosenbrock`` where it claims to find the minimum of Rosenbrock's
    function by itself. ``script`` is code that calls it on ``f`` and ``x``, for counterexamples.
    """

    name: str
    call: Callable[[Callable[[Tensor], Tensor], Tensor], Any]
    offers: frozenset[str] = frozenset({"rosenbrock"})
    script: str = ""

    @classmethod
    def of(cls, function: Callable[..., Any], traits: Iterable[str] = ("rosenbrock",)) -> Minimiser:
        if isinstance(function, Minimiser):
            return function
        name = name_of(function)
        return cls(name, function, frozenset(traits))

    def code(self, objective: Objective) -> str:
        """Lines that show what it makes of the objective, and need nothing of ours."""
        return objective.code() + self.script

    def __call__(self, objective: Objective, *, limit: int = OPERATIONS) -> Answer:
        """Its answer, within so many operations of torch."""
        with Limited(limit):
            found = self.call(objective.value, objective.start)
        x, success = found.x, found.success
        x = x.detach() if isinstance(x, Tensor) else torch.as_tensor(x)
        message = str(getattr(found, "message", ""))
        return Answer(x, None if success is None else bool(success), message)
