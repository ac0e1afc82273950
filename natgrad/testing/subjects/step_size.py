"""Anyone's rule for the size of a step of bounded KL divergence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from natgrad.testing.subjects.naming import name_of


@dataclass(frozen=True)
class StepSizeRule:
    """``call(sKs, delta)`` gives α, or anything with ``alpha``, or a tuple that begins with it."""

    name: str
    call: Callable[[float, float], Any]
    offers: frozenset[str] = frozenset()

    @classmethod
    def of(cls, function: Callable[..., Any], traits: object = ()) -> StepSizeRule:
        if isinstance(function, StepSizeRule):
            return function
        return cls(name_of(function), function)

    def __call__(self, sKs: float, delta: float) -> float:
        result = self.call(sKs, delta)
        alpha = getattr(result, "alpha", result)
        return float(alpha[0] if isinstance(alpha, tuple) else alpha)
