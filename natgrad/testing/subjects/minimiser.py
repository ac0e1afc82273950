"""A function that minimises a function of a vector, as a subject."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from natgrad.testing.cases.objective import Objective
from natgrad.testing.limited import Limited
from natgrad.testing.subjects.naming import name_of

OPERATIONS = 60_000  # methods written in torch take up to 20,000 to reach Rosenbrock's minimum


@dataclass(frozen=True)
class Answer:
    """The result of a minimiser.

    Attributes
    ----------
    x
        The last point (n,).
    success
        The claim that ``x`` is a minimum; None where the minimiser claims neither.
    message
        Its account of the end, for reports.
    """

    x: Tensor
    success: bool | None
    message: str = ""


@dataclass(frozen=True)
class Minimiser:
    """A function that minimises.

    Attributes
    ----------
    name
        The name in reports.
    call
        ``call(f, start)`` returns an :class:`Answer`, or another object with ``x`` and
        ``success``; f (n,) -> () is a function of torch with derivatives.
    offers
        Holds ``rosenbrock`` where it claims to find the minimum of Rosenbrock's function
        with nothing to tune.
    script
        Code that calls it on ``f`` and ``x``, for counterexamples; "" leaves them out.
    """

    name: str
    call: Callable[[Callable[[Tensor], Tensor], Tensor], Any]
    offers: frozenset[str] = frozenset({"rosenbrock"})
    script: str = ""

    @classmethod
    def of(cls, function: Callable[..., Any], traits: Iterable[str] = ("rosenbrock",)) -> Minimiser:
        """Make a subject of a function.

        Parameters
        ----------
        function
            The ``call``; a subject is returned as it is.
        traits
            What it claims. Give none where the method needs tuning.
        """
        if isinstance(function, Minimiser):
            return function
        name = name_of(function)
        return cls(name, function, frozenset(traits))

    def code(self, objective: Objective) -> str:
        """A script that minimises an objective, and runs without natgrad.

        Parameters
        ----------
        objective
            The objective, written out in the script.
        """
        return objective.code() + self.script

    def __call__(self, objective: Objective, *, limit: int = OPERATIONS) -> Answer:
        """Minimise an objective.

        Parameters
        ----------
        objective
            The function and its start.
        limit
            Operations of torch after which the search counts as endless. Lower it where there is
            no minimum to find.

        Raises
        ------
        AssertionError
            If the search takes more operations.
        """
        with Limited(limit):
            found = self.call(objective.value, objective.start)
        x, success = found.x, found.success
        x = x.detach() if isinstance(x, Tensor) else torch.as_tensor(x)
        message = str(getattr(found, "message", ""))
        return Answer(x, None if success is None else bool(success), message)
