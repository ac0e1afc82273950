"""Anyone's generalised advantage estimation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from natgrad.testing.subjects.naming import name_of


@dataclass(frozen=True)
class AdvantageEstimator:
    """``call(rewards, values, next_values, terminated, truncated, discount=, decay=)``, all (T, N);
    ``next_values`` is V of the observation that the step itself led to."""

    name: str
    call: Callable[..., Any]
    offers: frozenset[str] = frozenset()

    @classmethod
    def of(cls, function: Callable[..., Any], traits: object = ()) -> AdvantageEstimator:
        if isinstance(function, AdvantageEstimator):
            return function
        return cls(name_of(function), function)

    def __call__(self, *tensors: Tensor, discount: float, decay: float) -> Tensor:
        found: Tensor = self.call(*tensors, discount=discount, decay=decay)
        return found
