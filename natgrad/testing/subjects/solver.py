"""A solver of A x = b as a subject, and its answer."""

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
    """The result of a solver.

    Attributes
    ----------
    x
        The solution found, of b's shape.
    solved
        Whether the solver claims that ‖b − A x‖ <= rtol ‖b‖.
    status
        Its account of the end, for reports.
    iterations
        The iterations that it reports; None where it reports none.
    products
        The products with A that it reports; None where it reports none.
    Ax
        The product A x; None where it returns none.
    direction
        A direction p with pᵀA p <= 0; None where it found or returns none.
    """

    x: Tensor
    solved: bool
    status: str = ""
    iterations: int | None = None
    products: int | None = None
    Ax: Tensor | None = None
    direction: Tensor | None = None

    def assert_in_kind_of(self, system: System) -> None:
        """Assert that x has the shape and dtype of b.

        Parameters
        ----------
        system
            The system that was solved.
        """
        expected, got = (system.b.shape, system.dtype), (self.x.shape, self.x.dtype)
        assert got == expected, f"x is {got}, the right-hand side {expected}"

    def assert_ended_by_nan(self, A: Counted) -> None:
        """Assert that the solve ended within one product after the first NaN, with finite x.

        Parameters
        ----------
        A
            The operator of the solve, with ``nan_from``.
        """
        if A.nan_from is None or A.count < A.nan_from:
            return  # the solve ended before the first NaN
        assert not self.solved, "claims a solution"
        assert bool(torch.isfinite(self.x).all()), f"x = {self.x}"
        assert A.count <= A.nan_from + 1, f"{A.count} products, NaN since product {A.nan_from}"


@dataclass(frozen=True)
class Solver:
    """A function that solves a symmetric linear system.

    Attributes
    ----------
    name
        The name in reports.
    call
        ``call(A, b, rtol=..., **given)`` returns an :class:`Answer`, or an object that
        :func:`as_answer` reads.
    offers
        The keywords that it takes, of ``x0``, ``preconditioner`` and ``max_iterations``, and its
        traits: ``krylov`` (it takes only products with A, one an iteration), ``indefinite`` (A may
        be indefinite), ``columns`` (b may be a matrix), ``direction`` (it returns a direction of
        nonpositive curvature where A is not positive definite), ``device`` (it works on the device
        of its tensors), ``least error`` (conjugate gradients: the error falls in A's norm) or
        ``least residual`` (MINRES).
    script
        ``script(given)`` is code that calls the solver, for counterexamples: from ``product``,
        ``b``, ``rtol`` and the names in ``given`` it makes ``x``, and prints the solver's account
        of the end. None leaves them out.
    """

    name: str
    call: Callable[..., Any]
    offers: frozenset[str]
    script: Callable[[frozenset[str]], str] | None = None

    @classmethod
    def of(cls, function: Callable[..., Any], traits: Iterable[str] = ()) -> Solver:
        """Make a subject of a function, by its signature.

        Parameters
        ----------
        function
            The ``call``; one that takes ``max_iterations`` counts as a Krylov method, and as
            conjugate gradients without the traits of another. A subject is returned as it is.
        traits
            Traits beyond those that the signature tells; ``device`` is always among them.
        """
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
        """Solve A x = b, with the global generator in a fixed state.

        Parameters
        ----------
        A
            The operator, with ``A @ v``.
        b
            The right-hand side (n,), or (n, k) for a solver that offers ``columns``.
        rtol
            The tolerance, relative to ‖b‖.
        **given
            Other keywords of the solver, of those that it offers.
        """
        # Two calls must draw the same from the global generator, to compare their answers; S19
        # checks that a solver draws nothing.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return as_answer(self.call(A, b, rtol=rtol, **given))

    def solve(self, system: System, *, rtol: float = 1e-8, **given: Any) -> tuple[Answer, Counted]:
        """Solve a system; return the answer and the operator that counted the products.

        Parameters
        ----------
        system
            The system.
        rtol, **given
            As for calling the subject.
        """
        A = Counted(system.A)
        answer = self(A, system.b, rtol=rtol, **given)
        answer.assert_in_kind_of(system)
        return answer, A

    def iterations(self, answer: Answer, A: Counted) -> int:
        """The iterations reported, or else the products less one to start and one to verify.

        Parameters
        ----------
        answer
            The answer of a solve.
        A
            The operator of that solve.
        """
        return A.count - 2 if answer.iterations is None else answer.iterations


def as_answer(result: Any) -> Answer:
    """Read the result of a solver.

    Parameters
    ----------
    result
        An :class:`Answer`; an object with ``x`` and ``status`` (an enum, whose members CONVERGED
        and ZERO_RHS claim a solution); SciPy's ``(x, info)``; or x alone, which counts as a claim.

    Raises
    ------
    TypeError
        If it is none of these.
    """
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
    """An array as a tensor; None and tensors as they are.

    Parameters
    ----------
    value
        The array, tensor or None.
    """
    return value if value is None or isinstance(value, Tensor) else torch.as_tensor(value)
