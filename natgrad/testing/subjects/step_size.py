"""A rule for the size of a step of bounded KL divergence, as a subject."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from natgrad.testing.subjects.naming import name_of


@dataclass(frozen=True)
class StepSizeRule:
    """A function that scales a direction s to a step α s of KL divergence δ.

    Attributes
    ----------
    name
        The name in reports.
    call
        ``call(sKs, delta)`` returns α, an object with ``alpha`` or a tuple that begins with α.
    offers
        Traits; there are none of this kind.
    """

    name: str
    call: Callable[[float, float], Any]
    offers: frozenset[str] = frozenset()

    @classmethod
    def of(cls, function: Callable[..., Any], traits: object = ()) -> StepSizeRule:
        """Make a subject of a function.

        Parameters
        ----------
        function
            The ``call``; a subject is returned as it is.
        traits
            Ignored.
        """
        if isinstance(function, StepSizeRule):
            return function
        return cls(name_of(function), function)

    def __call__(self, sKs: float, delta: float) -> float:
        """The factor α.

        Parameters
        ----------
        sKs
            The quadratic form sᵀK s of the direction.
        delta
            The divergence δ, in nats.
        """
        result = self.call(sKs, delta)
        alpha = getattr(result, "alpha", result)
        return float(alpha[0] if isinstance(alpha, tuple) else alpha)
