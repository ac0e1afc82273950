"""Hager and Zhang's line search: Wolfe's conditions, also in a form that is robust to rounding."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

Slope = Callable[[float], tuple[float, float]]

SHRINK = 0.66  # a round must shrink the bracket at least by this factor, else it is bisected
CUT = 0.5  # where between its ends an interval is cut
GROW = 5.0  # factor of the step while no bracket is found


class WolfeStatus(Enum):
    """How a search ended."""

    ACCEPTED = "the (approximate) Wolfe conditions hold"
    MAX_EVALUATIONS = (
        "out of evaluations, at the lowest point seen, which is below the start: allow more, or "
        "start from a better length"
    )
    NO_IMPROVEMENT = "no point below the start was found: at this precision it is a minimum"
    NONFINITE = "every point tried was NaN or infinite"


@dataclass(frozen=True)
class WolfeResult:
    """The outcome of a search.

    Attributes
    ----------
    alpha
        The step length, 0 where refused.
    value, slope
        φ and φ′ at ``alpha``.
    status
        How the search ended.
    evaluations
        The number of calls of ``evaluate``.
    """

    alpha: float
    value: float
    slope: float
    status: WolfeStatus
    evaluations: int

    @property
    def accepted(self) -> bool:
        """Whether to take the step: also the lowest one seen where the evaluations ran out."""
        return self.status in (WolfeStatus.ACCEPTED, WolfeStatus.MAX_EVALUATIONS)


def approximate_wolfe(
    evaluate: Slope,
    *,
    initial: float,
    value: float,
    slope: float,
    decrease: float = 0.1,
    curvature: float = 0.9,
    tolerance: float = 1e-6,
    max_evaluations: int = 40,
) -> WolfeResult:
    """A step length α > 0 along a descent direction, for φ(α) = f(θ + α d).

    Parameters
    ----------
    evaluate
        α ↦ (φ(α), φ′(α)). NaN and infinity count as too far.
    initial
        The first α tried, > 0.
    value, slope
        φ(0), and φ′(0) < 0.
    decrease
        δ in (0, ½): the share of the decrease predicted by the slope that Wolfe's first condition
        asks for.
    curvature
        σ in [δ, 1): the share of the slope that may be left. Lower it for a more exact search.
    tolerance
        ε >= 0: the increase ε |φ(0)| that counts as rounding. Match it to the precision of φ.
    max_evaluations
        Bound on the evaluations, >= 1.

    Returns
    -------
    WolfeResult
        Accepted where φ(α) <= φ(0) + δ α φ′(0) and φ′(α) >= σ φ′(0) (Wolfe), or
        (2δ − 1) φ′(0) >= φ′(α) >= σ φ′(0) and φ(α) <= φ(0) + ε |φ(0)| (approximate Wolfe): near a
        minimum differences of φ are rounding, its derivatives are not. The same for φ times any
        c > 0.

    Raises
    ------
    ValueError
        Where the slope is not negative and finite, or settings are out of range.

    Notes
    -----
    Cost: at most ``max_evaluations`` evaluations.

    Source: Hager & Zhang, "A new conjugate gradient method with guaranteed descent and an efficient
    line search", 2005, section 4 (B, U, S², L). Differences: a point that is not finite cuts the
    interval; the number of evaluations is bounded.

    Examples
    --------
    >>> def evaluate(a):
    ...     return (a - 3) ** 2, 2 * (a - 3)
    >>> found = approximate_wolfe(evaluate, initial=0.1, value=9.0, slope=-6.0)
    >>> found.alpha, found.status.name, found.evaluations
    (0.5, 'ACCEPTED', 2)
    """
    if not (slope < 0 and math.isfinite(slope) and math.isfinite(value)):
        raise ValueError(f"expected a finite value and a negative slope, got {value} and {slope}")
    if not (0 < decrease < 0.5 and decrease <= curvature < 1 and tolerance >= 0):
        raise ValueError(
            "expected 0 < decrease < 1/2, decrease <= curvature < 1 and tolerance >= 0, got "
            f"{decrease}, {curvature}, {tolerance}"
        )
    if not (initial > 0 and math.isfinite(initial) and max_evaluations >= 1):
        raise ValueError(
            f"expected a positive finite initial step and max_evaluations >= 1, got {initial}, "
            f"{max_evaluations}"
        )
    start = _Point(0.0, value, slope)
    search = _Search(evaluate, start, decrease, curvature, tolerance, max_evaluations)
    bracket = search.bracket(initial)
    while bracket is not None and not search.over:  # a round evaluates at least once: bounded
        low, high = bracket
        bracket = search.secant_squared(low, high)
        if bracket is not None and bracket[1].alpha - bracket[0].alpha > SHRINK * (
            high.alpha - low.alpha
        ):
            middle = (bracket[0].alpha + bracket[1].alpha) / 2
            bracket = search.update(*bracket, middle)
    return search.result()


class _Point(NamedTuple):
    alpha: float
    value: float
    slope: float

    @property
    def finite(self) -> bool:
        return math.isfinite(self.value) and math.isfinite(self.slope)


Bracket = tuple[_Point, _Point]


class _Search:
    """A search over brackets [low, high]: φ′(low) < 0 and φ(low) <= ``ceiling``; φ′(high) >= 0.

    Every method returns None once a point is accepted, the budget spent, or no float lies between.
    """

    def __init__(
        self,
        evaluate: Slope,
        start: _Point,
        decrease: float,
        curvature: float,
        tolerance: float,
        budget: int,
    ) -> None:
        self._evaluate, self._start = evaluate, start
        self._decrease, self._curvature, self._budget = decrease, curvature, budget
        self.ceiling = start.value + tolerance * abs(start.value)
        self.evaluations = 0
        self.found: _Point | None = None
        self._best = start
        self._seen_finite = False

    @property
    def over(self) -> bool:
        return self.found is not None or self.evaluations >= self._budget

    def result(self) -> WolfeResult:
        if self.found is not None:
            return WolfeResult(*self.found, WolfeStatus.ACCEPTED, self.evaluations)
        rounding = 4 * sys.float_info.epsilon * abs(self._start.value)
        if self._best.value < self._start.value - rounding:
            return WolfeResult(*self._best, WolfeStatus.MAX_EVALUATIONS, self.evaluations)
        status = WolfeStatus.NO_IMPROVEMENT if self._seen_finite else WolfeStatus.NONFINITE
        return WolfeResult(*self._start, status, self.evaluations)

    def bracket(self, step: float) -> Bracket | None:
        low, bound = self._start, math.inf
        while not self.over:
            point = self._try(step)
            if self.found is not None:
                return None
            if not point.finite:
                bound, step = step, (low.alpha + step) / 2
                if not low.alpha < step < bound:
                    return None
                continue
            if point.slope >= 0:
                return low, point
            if point.value > self.ceiling:
                return self.squeeze(low, point)
            low = point
            step = min(GROW * step, (step + bound) / 2)
            if not low.alpha < step < bound:
                return None
        return None

    def squeeze(self, low: _Point, high: _Point) -> Bracket | None:
        """U3, where φ(high) is above the ceiling or not finite: bisect to a point with φ′ >= 0."""
        while not self.over:
            middle = (1 - CUT) * low.alpha + CUT * high.alpha
            if not low.alpha < middle < high.alpha:
                return None
            point = self._try(middle)
            if self.found is not None:
                return None
            if point.finite and point.slope >= 0:
                return low, point
            if point.finite and point.value <= self.ceiling:
                low = point
            else:
                high = point
        return None

    def update(self, low: _Point, high: _Point, alpha: float) -> Bracket | None:
        """U0 to U3: shrink the bracket by the point alpha; unchanged where that is outside."""
        if not low.alpha < alpha < high.alpha:
            return low, high
        if self.over:
            return None
        point = self._try(alpha)
        if self.found is not None:
            return None
        if point.finite and point.slope >= 0:
            return low, point
        if point.finite and point.value <= self.ceiling:
            return point, high
        return self.squeeze(low, point)

    def secant_squared(self, low: _Point, high: _Point) -> Bracket | None:
        """S1 to S4: a secant step, and another from the end that it replaced."""
        alpha = _secant(low, high)
        bracket = self.update(low, high, alpha)
        if bracket is None:
            return None
        new_low, new_high = bracket
        if (new_low, new_high) == (low, high):
            middle = (low.alpha + high.alpha) / 2
            return self.update(low, high, middle) if low.alpha < middle < high.alpha else None
        if alpha == new_high.alpha:
            return self.update(new_low, new_high, _secant(high, new_high))
        if alpha == new_low.alpha:
            return self.update(new_low, new_high, _secant(low, new_low))
        return bracket

    def _try(self, alpha: float) -> _Point:
        self.evaluations += 1
        point = _Point(alpha, *self._evaluate(alpha))
        if not point.finite:
            return point
        self._seen_finite = True
        start = self._start
        if point.value < self._best.value:
            self._best = point
        steep = point.slope >= self._curvature * start.slope
        wolfe = point.value - start.value <= self._decrease * alpha * start.slope
        flat = (2 * self._decrease - 1) * start.slope >= point.slope
        if steep and (wolfe or (flat and point.value <= self.ceiling)):
            self.found = point
        return point


def _secant(one: _Point, other: _Point) -> float:
    """The zero of the line through both slopes; NaN, which is in no interval, where parallel."""
    rise = other.slope - one.slope
    if not rise:
        return math.nan
    return (one.alpha * other.slope - other.alpha * one.slope) / rise
