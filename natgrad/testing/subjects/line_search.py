"""Anyone's line search, by points or by lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from natgrad.testing.cases.ray import Ray
from natgrad.testing.subjects.naming import name_of

LIMIT = 500  # evaluations that no bounded search takes


@dataclass(frozen=True)
class Found:
    """``theta`` to go on from; ``evaluations`` as the search tells, None where it does not;
    ``calls`` as they were counted."""

    theta: Tensor
    accepted: bool
    evaluations: int | None
    calls: int


@dataclass(frozen=True)
class LineSearch:
    """``call(ray, evaluate)`` gives ``(theta or alpha, accepted, evaluations or None)``.

    ``decrease`` is the constant c of the sufficient decrease f(θ + αd) <= f(θ) + c α gᵀd that it
    promises. ``offers`` may hold ``wolfe`` (it also promises a flatter slope) and ``constraint``.
    """

    name: str
    call: Callable[..., tuple[Any, bool, int | None]]
    offers: frozenset[str] = frozenset()
    decrease: float = 1e-4

    @classmethod
    def of(cls, function: Callable[..., Any], traits: Iterable[str] = ()) -> LineSearch:
        """``function(evaluate, start, step, expected_improvement=, accept_ratio=, bound=)`` with
        ``evaluate(theta) -> (objective, constraint)``; its answer has ``theta`` and ``accepted``,
        and ``evaluations`` if it counts them."""
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
        """``function(evaluate, initial=, value=, slope=)`` with ``evaluate(alpha) -> (φ, φ′)``; its
        answer has ``alpha`` and ``accepted``, and ``evaluations`` if it counts them."""

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
        calls = 0

        def evaluate(theta: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            assert calls <= LIMIT, f"no end after {LIMIT} evaluations"
            return ray.value(theta)

        theta, accepted, evaluations = self.call(ray, evaluate, **given)
        return Found(theta, accepted, evaluations, calls)
