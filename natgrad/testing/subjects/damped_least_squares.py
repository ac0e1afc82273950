"""Anyone's solver of (JᵀJ + λI)s = Jᵀr, in whatever space it works."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from natgrad.testing.subjects.naming import name_of


@dataclass(frozen=True)
class DampedLeastSquares:
    """``call(J, r, damping)`` gives s (n,), or an object with ``x``; ``offers`` may hold
    ``momentum``: then ``call(J, r, damping, previous=, momentum=)`` takes the proximal term
    λ ‖s − μ s_previous‖² of SPRING."""

    name: str
    call: Callable[..., Any]
    offers: frozenset[str]

    @classmethod
    def of(cls, function: Callable[..., Any], traits: Iterable[str] = ()) -> DampedLeastSquares:
        if isinstance(function, DampedLeastSquares):
            return function
        takes = "momentum" in inspect.signature(function).parameters
        name = name_of(function)
        return cls(name, function, frozenset(traits) | ({"momentum"} if takes else frozenset()))

    def __call__(
        self,
        J: Tensor,
        r: Tensor,
        damping: float,
        previous: Tensor | None = None,
        momentum: float = 0.0,
    ) -> Tensor:
        given = {} if previous is None else {"previous": previous, "momentum": momentum}
        result = self.call(J, r, damping, **given)
        s: Tensor = getattr(result, "x", result)
        return s
