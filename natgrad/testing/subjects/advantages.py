"""Generalised advantage estimation as a subject."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from natgrad.testing.subjects.naming import name_of


@dataclass(frozen=True)
class AdvantageEstimator:
    """A function that estimates advantages from a rollout.

    Attributes
    ----------
    name
        The name in reports.
    call
        ``call(rewards, values, next_values, terminated, truncated, discount=, decay=)`` returns
        the advantages; all tensors are (T, N), and ``next_values`` is V of the observation that
        the step itself led to.
    offers
        Traits; there are none of this kind.
    """

    name: str
    call: Callable[..., Any]
    offers: frozenset[str] = frozenset()

    @classmethod
    def of(cls, function: Callable[..., Any], traits: object = ()) -> AdvantageEstimator:
        """Make a subject of a function.

        Parameters
        ----------
        function
            The ``call``; a subject is returned as it is.
        traits
            Ignored.
        """
        if isinstance(function, AdvantageEstimator):
            return function
        return cls(name_of(function), function)

    def __call__(self, *tensors: Tensor, discount: float, decay: float) -> Tensor:
        """Estimate the advantages (T, N).

        Parameters
        ----------
        *tensors
            Rewards, values, next values, terminated and truncated, each (T, N).
        discount
            The discount γ per step.
        decay
            The weight λ of longer estimators.
        """
        found: Tensor = self.call(*tensors, discount=discount, decay=decay)
        return found
