"""Anyone's solver of min gᵀs + ½ sᵀA s over ‖s‖ <= radius."""

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
    """``call(A, g, radius, rtol=..., **given)`` gives what :func:`as_answer` reads; an answer
    counts as solved where it claims that s lies inside and the model's gradient is within rtol.

    ``offers`` names the keywords that it takes, of ``preconditioner`` and ``max_iterations``, and
    its traits: ``exact`` (the minimiser itself, not that of a Krylov path), ``krylov`` (only
    products with A), ``path``: ``path(A, g).solve(radius)`` solves for one radius after another.
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
        """By its signature; one that takes ``max_iterations`` counts as a Krylov method."""
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
        return as_answer(self.call(A, g, radius, rtol=rtol, **given))

    def solve(
        self, system: System, radius: float, *, rtol: float = 1e-8, **given: Any
    ) -> tuple[Answer, Counted]:
        """The answer with g = b, and the operator that counted its products."""
        A = Counted(system.A)
        answer = self(A, system.b, radius, rtol=rtol, **given)
        answer.assert_in_kind_of(system)
        return answer, A


def model(system: System, s: Tensor) -> float:
    """gᵀs + ½ sᵀA s in float64."""
    A, g, s = system.A.double(), system.b.double(), s.double()
    return float(g @ s + s @ (A @ s) / 2)


def minimum(A: Tensor, g: Tensor, radius: float) -> float:
    """The least of the model over the ball, by the eigenvalues of A and bisection in float64."""
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
