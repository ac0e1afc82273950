"""Anyone's solver of A x = b, and what it answers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from natgrad.testing.cases.system import Counted, System
from natgrad.testing.subjects.naming import name_of

KEYWORDS = frozenset({"x0", "preconditioner", "max_iterations"})
SOLVED = frozenset({"CONVERGED", "ZERO_RHS"})


@dataclass(frozen=True)
class Answer:
    """``solved`` is what the solver claims; what it does not tell is None."""

    x: Tensor
    solved: bool
    status: str = ""
    iterations: int | None = None
    products: int | None = None
    Ax: Tensor | None = None
    direction: Tensor | None = None

    def assert_in_kind_of(self, system: System) -> None:
        expected, got = (system.b.shape, system.dtype), (self.x.shape, self.x.dtype)
        assert got == expected, f"x is {got}, the right-hand side {expected}"

    def assert_ended_by_nan(self, A: Counted) -> None:
        """At the product where NaN came or the next, unsolved, at the last finite x."""
        if A.nan_from is None or A.count < A.nan_from:
            return  # it never met one
        assert not self.solved, "claims a solution"
        assert bool(torch.isfinite(self.x).all()), f"x = {self.x}"
        assert A.count <= A.nan_from + 1, f"{A.count} products, NaN since product {A.nan_from}"


@dataclass(frozen=True)
class Solver:
    """``call(A, b, rtol=..., **given)`` gives an :class:`Answer`, or what :func:`as_answer` reads.

    ``offers`` names the keywords that it takes, of ``x0``, ``preconditioner`` and
    ``max_iterations``, and its traits: ``krylov`` (only products with A, one an iteration),
    ``indefinite`` (A may be), ``columns`` (b may be a matrix), ``direction`` (one of nonpositive
    curvature is shown where A is not positive definite), ``device`` (it works where its tensors
    are), ``least error`` (conjugate gradients: the error falls in A's norm) or ``least residual``
    (MINRES).

    ``script(given)`` is code that calls the solver itself: it makes ``x`` of functions and vectors
    ``product``, ``b`` and what ``given`` names, ``rtol`` among it, and prints the solver's word.
    """

    name: str
    call: Callable[..., Any]
    offers: frozenset[str]
    script: Callable[[frozenset[str]], str] | None = None

    @classmethod
    def of(cls, function: Callable[..., Any], traits: Iterable[str] = ()) -> Solver:
        """By its signature; one that takes ``max_iterations`` and is not said to be otherwise
        counts as conjugate gradients."""
        if isinstance(function, Solver):
            return function
        names = frozenset(inspect.signature(function).parameters) & KEYWORDS
        given = frozenset({"device", *traits})
        if "max_iterations" in names:
            given |= {"krylov"}
            given |= set() if given & {"least residual", "indefinite"} else {"least error"}
        name = name_of(function)
        return cls(name, function, names | given)

    def __call__(self, A: Any, b: Tensor, *, rtol: float = 1e-8, **given: Any) -> Answer:
        # Two calls must compare whatever the solver draws from the global generator; that it does
        # is a check of its own.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return as_answer(self.call(A, b, rtol=rtol, **given))

    def solve(self, system: System, *, rtol: float = 1e-8, **given: Any) -> tuple[Answer, Counted]:
        """The answer, checked for its kind, and the operator that counted its products."""
        A = Counted(system.A)
        answer = self(A, system.b, rtol=rtol, **given)
        answer.assert_in_kind_of(system)
        return answer, A

    def iterations(self, answer: Answer, A: Counted) -> int:
        """As it says, or else its products, less one for a start and one to verify."""
        return A.count - 2 if answer.iterations is None else answer.iterations


def as_answer(result: Any) -> Answer:
    """Of an :class:`Answer`; an object with ``x`` and ``status`` (an enum; CONVERGED and ZERO_RHS
    claim a solution); SciPy's ``(x, info)``; or x alone, which claims one by saying nothing."""
    if isinstance(result, Answer):
        return result
    if hasattr(result, "x") and hasattr(result, "status"):
        status = getattr(result.status, "name", str(result.status))
        return Answer(
            as_tensor(result.x),
            status in SOLVED,
            status,
            getattr(result, "iterations", None),
            getattr(result, "products", None),
            as_tensor(getattr(result, "Ax", None)),
            as_tensor(getattr(result, "direction", None)),
        )
    if isinstance(result, tuple) and len(result) == 2:
        return Answer(as_tensor(result[0]), int(result[1]) == 0, f"info {int(result[1])}")
    if isinstance(result, Tensor | np.ndarray):
        return Answer(as_tensor(result), True)
    raise TypeError(
        f"a solver answered with {type(result).__name__}; expected natgrad.testing.Answer, an "
        "object with x and status, (x, info) or x. Wrap it in a function that returns an Answer"
    )


def as_tensor(value: Any) -> Any:
    return value if value is None or isinstance(value, Tensor) else torch.as_tensor(value)
