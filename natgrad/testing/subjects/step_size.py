"""Anyone's rule for the size of a step of bounded KL divergence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


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
        return cls(f"{function.__module__}.{getattr(function, '__name__', function)}", function)

    def __call__(self, sKs: float, delta: float) -> float:
        result = self.call(sKs, delta)
        alpha = getattr(result, "alpha", result)
        return float(alpha[0] if isinstance(alpha, tuple) else alpha)
