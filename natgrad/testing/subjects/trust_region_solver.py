"""A solver of min gᵀs + ½ sᵀA s over ‖s‖ <= radius as a subject."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from natgrad.testing.cases.system import Counted, System
from natgrad.testing.subjects.naming import name_of
from natgrad.testing.subjects.solver import Answer, as_answer

KEYWORDS = frozenset({"preconditioner", "max_iterations"})


@dataclass(frozen=True)
class TrustRegionSolver:
    """A function that solves the trust-region subproblem.

    Attributes
    ----------
    name
        The name in reports.
    call
        ``call(A, g, radius, rtol=..., **given)`` returns an object that :func:`as_answer` reads,
        with s as ``x``; it counts as solved where the solver claims that s lies inside the region
        and that ‖A s + g‖ <= rtol ‖g‖.
    offers
        The keywords that it takes, of ``preconditioner`` and ``max_iterations``, and its traits:
        ``exact`` (it returns the minimiser, not that of a Krylov path), ``krylov`` (it takes only
        products with A) and ``path``.
    path
        ``path(A, g).solve(radius)`` solves for one radius after another; None where there is no
        such class.
    """

    name: str
    call: Callable[..., Any]
    offers: frozenset[str]
    path: Callable[..., Any] | None = None

    @classmethod
    def of(
        cls,
        function: Callable[..., Any],
        traits: Iterable[str] = (),
        *,
        path: Callable[..., Any] | None = None,
    ) -> TrustRegionSolver:
        """Make a subject of a function, by its signature.

        Parameters
        ----------
        function
            The ``call``; one that takes ``max_iterations`` counts as a Krylov method. A subject is
            returned as it is.
        traits
            Traits beyond those that the signature tells.
        path
            As the attribute.
        """
        if isinstance(function, TrustRegionSolver):
            return function
        names = frozenset(inspect.signature(function).parameters) & KEYWORDS
        given = frozenset(traits) | ({"krylov"} if "max_iterations" in names else frozenset())
        given |= {"path"} if path is not None else frozenset()
        name = name_of(function)
        return cls(name, function, names | given, path)

    def __call__(
        self, A: Any, g: Tensor, radius: float, *, rtol: float = 1e-8, **given: Any
    ) -> Answer:
        """Solve the subproblem.

        Parameters
        ----------
        A
            The operator, with ``A @ v``.
        g
            The gradient (n,).
        radius
            The radius, a length in the preconditioner's norm.
        rtol
            The tolerance, relative to ‖g‖.
        **given
            Other keywords of the solver, of those that it offers.
        """
        return as_answer(self.call(A, g, radius, rtol=rtol, **given))

    def solve(
        self, system: System, radius: float, *, rtol: float = 1e-8, **given: Any
    ) -> tuple[Answer, Counted]:
        """Solve with A and g = b of a system; return the answer and the counting operator.

        Parameters
        ----------
        system
            The system.
        radius, rtol, **given
            As for calling the subject.
        """
        A = Counted(system.A)
        answer = self(A, system.b, radius, rtol=rtol, **given)
        answer.assert_in_kind_of(system)
        return answer, A


def model(system: System, s: Tensor) -> float:
    """The model's value gᵀs + ½ sᵀA s, in float64.

    Parameters
    ----------
    system
        The system with A and g = b.
    s
        The step (n,).
    """
    A, g, s = system.A.double(), system.b.double(), s.double()
    return float(g @ s + s @ (A @ s) / 2)


def minimum(A: Tensor, g: Tensor, radius: float) -> float:
    """The least value of the model over the ball, by eigenvalues and bisection in float64.

    Parameters
    ----------
    A
        The matrix (n, n).
    g
        The gradient (n,).
    radius
        The radius of the ball.
    """
    values, vectors = torch.linalg.eigh(A.double())
    g = vectors.mT @ g.double()

    def step(shift: float) -> Tensor:
        shifted = values + shift
        return torch.where(shifted > 0, -g / shifted.clamp_min(1e-300), 0.0)

    least = max(0.0, -float(values[0]))
    size = float(values.abs().max())
    if float(values[0]) > 0 and float(step(0.0).norm()) <= radius:
        s = step(0.0)
    else:
        low, high = least, least + float(g.norm()) / radius + size * 1e-12
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if float(step(middle).norm()) > radius else (low, middle)
        s = step(high)
        missing = radius**2 - float(s @ s)
        if missing > 0:  # the hard case: the rest goes along the lowest eigenvector
            s[0] = (missing + float(s[0]) ** 2) ** 0.5 * (1 if s[0] >= 0 else -1)
    return float(g @ s + s @ (values * s) / 2)
