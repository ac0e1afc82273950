"""A solver of (JᵀJ + λI)s = Jᵀr, in parameter or in sample space, as a subject."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from natgrad.testing.subjects.naming import name_of


@dataclass(frozen=True)
class DampedLeastSquares:
    """A function that solves a damped linear least-squares problem.

    Attributes
    ----------
    name
        The name in reports.
    call
        ``call(J, r, damping)`` returns s (n,), or an object with s as ``x``.
    offers
        May hold ``momentum``: ``call(J, r, damping, previous=, momentum=)`` then takes the
        proximal term λ ‖s − μ s_previous‖² of SPRING.
    """

    name: str
    call: Callable[..., Any]
    offers: frozenset[str]

    @classmethod
    def of(cls, function: Callable[..., Any], traits: Iterable[str] = ()) -> DampedLeastSquares:
        """Make a subject of a function.

        Parameters
        ----------
        function
            The ``call``; one with an argument ``momentum`` offers it. A subject is returned as
            it is.
        traits
            Traits beyond those that the signature tells.
        """
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
        """Solve for s (n,).

        Parameters
        ----------
        J
            The Jacobian (m, n).
        r
            The residuals (m,).
        damping
            λ > 0.
        previous
            The step before (n,); None solves without momentum, and passes none on.
        momentum
            The factor μ of ``previous``, from 0 to 1.
        """
        given = {} if previous is None else {"previous": previous, "momentum": momentum}
        result = self.call(J, r, damping, **given)
        s: Tensor = getattr(result, "x", result)
        return s
