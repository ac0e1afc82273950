"""A line search, over points or over step lengths, as a subject."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from natgrad.testing.cases.ray import Ray
from natgrad.testing.subjects.naming import name_of

LIMIT = 500  # evaluations: a bounded search takes fewer


@dataclass(frozen=True)
class Found:
    """The result of a line search.

    Attributes
    ----------
    theta
        The point (n,) to go on from.
    accepted
        Whether the search accepted a step.
    evaluations
        The evaluations that the search reports; None where it reports none.
    calls
        The evaluations counted.
    """

    theta: Tensor
    accepted: bool
    evaluations: int | None
    calls: int


@dataclass(frozen=True)
class LineSearch:
    """A function that searches along a :class:`natgrad.testing.cases.ray.Ray`.

    Attributes
    ----------
    name
        The name in reports.
    call
        ``call(ray, evaluate)`` returns (the point to go on from, whether a step was accepted, the
        number of evaluations or None).
    offers
        May hold ``wolfe`` (it also promises a flatter slope) and ``constraint`` (``call`` takes
        ``constraint`` and ``bound``, and accepts no point where the constraint exceeds the bound
        or is not finite).
    decrease
        The constant c of the sufficient decrease f(θ + αd) <= f(θ) + c α gᵀd that it promises.
    """

    name: str
    call: Callable[..., tuple[Any, bool, int | None]]
    offers: frozenset[str] = frozenset()
    decrease: float = 1e-4

    @classmethod
    def of(cls, function: Callable[..., Any], traits: Iterable[str] = ()) -> LineSearch:
        """Make a subject of a search over points.

        Parameters
        ----------
        function
            ``function(evaluate, start, step, expected_improvement=, accept_ratio=, bound=)`` with
            ``evaluate(theta) -> (objective, constraint)`` returns an object with ``theta`` and
            ``accepted``, and ``evaluations`` if it counts them. A subject is returned as it is.
        traits
            Traits besides ``constraint``; with ``wolfe`` the function is one for :meth:`along`.
        """
        if isinstance(function, LineSearch):
            return function
        if "wolfe" in traits:
            return cls.along(function)

        def call(
            ray: Ray, evaluate: Callable[[Tensor], Any], constraint: Any = None, bound: float = 0.0
        ) -> tuple[Any, bool, int | None]:
            expected = -float(ray.gradient(ray.start) @ ray.step)
            given = {} if constraint is None else {"bound": bound}
            result = function(
                lambda theta: (evaluate(theta), 0.0 if constraint is None else constraint(theta)),
                ray.start,
                ray.step,
                expected_improvement=expected,
                accept_ratio=0.1,
                **given,
            )
            return result.theta, bool(result.accepted), getattr(result, "evaluations", None)

        return cls(name_of(function), call, frozenset({"constraint", *traits}), 0.1)

    @classmethod
    def along(cls, function: Callable[..., Any]) -> LineSearch:
        """Make a subject of a search over step lengths.

        Parameters
        ----------
        function
            ``function(evaluate, initial=, value=, slope=)`` with ``evaluate(alpha) -> (φ, φ′)``
            returns an object with ``alpha`` and ``accepted``, and ``evaluations`` if it counts
            them.
        """

        def call(ray: Ray, evaluate: Callable[[Tensor], Any]) -> tuple[Any, bool, int | None]:
            step = ray.step

            def at(alpha: float) -> tuple[float, float]:
                theta = ray.start + alpha * step
                return float(evaluate(theta)), float(ray.gradient(theta) @ step)

            value, slope = float(ray.value(ray.start)), float(ray.gradient(ray.start) @ step)
            result = function(at, initial=1.0, value=value, slope=slope)
            theta = ray.start + result.alpha * step if result.accepted else ray.start
            return theta, bool(result.accepted), getattr(result, "evaluations", None)

        return cls(name_of(function), call, frozenset({"wolfe"}))

    def __call__(self, ray: Ray, **given: Any) -> Found:
        """Search along a ray, within 500 evaluations.

        Parameters
        ----------
        ray
            The function, the start and the step.
        **given
            ``constraint`` and ``bound``, for a search that offers ``constraint``.
        """
        calls = 0

        def evaluate(theta: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            assert calls <= LIMIT, f"no end after {LIMIT} evaluations"
            return ray.value(theta)

        theta, accepted, evaluations = self.call(ray, evaluate, **given)
        return Found(theta, accepted, evaluations, calls)
