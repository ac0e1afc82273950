"""Candidates at ever smaller radii until one keeps the reduction that the model promises."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from natgrad.optim.objective import Start
from natgrad.optim.report import OptimizerReport, OptimizerStatus
from natgrad.solvers import Solution, Status
from natgrad.solvers.scaling import inner_products, length
from natgrad.trust_region import reduction_ratio, update_radius

SMALLEST = 2.0**-1000  # the smallest radius: a float's range ends below it
ON_BOUNDARY = (Status.BOUNDARY, Status.NEGATIVE_CURVATURE)
GROWTH = 2.0**100  # the factor for a radius in which nothing can be measured


class SolveRadius(Protocol):
    """The minimiser of the model within any radius."""

    def __call__(self, *, radius: float) -> Solution[Tensor]: ...


@dataclass(frozen=True)
class RadiusSearch:
    """θ to go on from or None, the ``radius`` for the next step, and the search's ``report``."""

    theta: Tensor | None
    radius: float
    report: OptimizerReport


def search_radius(
    start: Start,
    solve: SolveRadius,
    radius: float,
    rates: Tensor,
    multiply: Callable[[Tensor], Tensor],
    *,
    accept_ratio: float,
    max_attempts: int,
    norm: Callable[[Tensor], Tensor] = length,
    decrease: Callable[[Tensor], float] | None = None,
    bend: Callable[[Solution[Tensor]], Tensor] | None = None,
) -> RadiusSearch:
    """Find the first candidate θ + lr s, ‖s‖ <= radius, with a reduction ratio > ``accept_ratio``.

    ``solve`` answers for every radius with s and A s, ``multiply`` is v ↦ A v, taken only where
    learning rates differ; ``norm`` is the one that the radius bounds. ``decrease(lr s)`` is that of
    the model, where the caller knows it better than −(gᵀs + ½ sᵀA s) to rounding. A refused
    candidate takes the radius to a quarter of its length, after six of them to less.
    ``bend(solution)`` is added to s, beyond the quadratic model.
    """
    assert start.loss is not None
    loss = float(start.loss)
    eps = torch.finfo(start.theta.dtype).eps
    iterations, promised, hidden, seen_finite = 0, False, False, False
    quarters = 0.0  # the radius after cuts to a quarter alone
    predicted = actual = math.nan
    status, tried, accepted = OptimizerStatus.NO_IMPROVEMENT, radius, None
    for attempt in range(max_attempts):
        tried, s = radius, solve(radius=radius)
        iterations = max(iterations, s.iterations)
        if s.status is Status.NONFINITE:
            status = OptimizerStatus.NONFINITE_CURVATURE
            break
        step = rates * s.x
        if decrease is None:
            predicted = _model_decrease(start.gradient, s, rates, multiply)
        else:
            predicted = decrease(step)
        if not math.isfinite(predicted):
            status = OptimizerStatus.NONFINITE_CURVATURE
            break
        if abs(predicted) <= (100 * eps) ** 2 * abs(loss):
            share = min(float(rates.amax()), 1.0)
            small = share > 0 and abs(predicted) <= share * (100 * eps) ** 2 * abs(loss)
            if promised or not small or s.status not in ON_BOUNDARY:
                break  # the step itself is rounding: there is no lower point to go to
            # The radius is too small, not the rate: a larger region may hold much more.
            radius, hidden = min(GROWTH * radius, sys.float_info.max), True
            continue
        if not predicted > 0:
            hidden = -predicted <= 1e3 * eps * abs(loss)
            radius = _cut(radius, norm(s.x))  # rounding: of a long step without curvature, say
            continue
        promised = True
        if bend is not None:
            step = step + rates * bend(s)
        theta = start.theta + step
        if torch.equal(theta, start.theta):
            break
        value = float(start.evaluate(theta)[0])
        seen_finite = seen_finite or math.isfinite(value)
        ratio, actual = reduction_ratio(loss, value, predicted, epsilon=eps), loss - value
        # The ratio's guard against rounding must not take a rise of the loss for a fall.
        risen = actual < -16 * eps * abs(loss) and predicted > 1e3 * eps * abs(loss)
        if ratio > accept_ratio and not (risen and accept_ratio >= 0):
            radius = _after_acceptance(radius, ratio, s, norm, eps)
            status, accepted = OptimizerStatus.ACCEPTED, theta
            break
        radius = _cut(radius, norm(s.x), attempt if seen_finite else 0)
        quarters = max(quarters, math.ldexp(radius, -2 * (max_attempts - attempt - 1)))
    else:
        radius = max(radius, quarters)
        if not promised and not hidden:
            status = OptimizerStatus.NOT_DESCENT
        elif promised and not seen_finite:
            status = OptimizerStatus.NONFINITE_LOSS
    report = OptimizerReport(
        status,
        iterations=iterations,
        radius=tried,
        predicted_reduction=predicted,
        actual_reduction=math.nan if accepted is None else actual,
        step_scale=float(accepted is not None),
        solver_status=s.status,
    )
    return RadiusSearch(accepted, radius, report)


def _model_decrease(
    g: Tensor, s: Solution[Tensor], rates: Tensor, multiply: Callable[[Tensor], Tensor]
) -> float:
    """−(gᵀd + ½ dᵀA d) of d = lr s."""
    d = rates * s.x
    image = multiply(d) if rates.ndim else rates * s.Ax
    return -float(inner_products(g, d) + inner_products(d, image) / 2)


def _after_acceptance(
    radius: float,
    ratio: float,
    s: Solution[Tensor],
    norm: Callable[[Tensor], Tensor],
    eps: float,
) -> float:
    """The radius for the next step; an infinite one stays."""
    inside = s.status in (Status.CONVERGED, Status.STAGNATED) and not s.multiplier
    # A first radius that is the Cauchy length is met up to rounding, by a solve inside.
    met = not inside or float(norm(s.x)) >= (1 - math.sqrt(eps)) * radius
    if not math.isfinite(radius):
        return radius
    return max(update_radius(radius, ratio, at_boundary=met), SMALLEST)


def unmeasured_step(start: Start, solve: SolveRadius, radius: float, rates: Tensor) -> RadiusSearch:
    """Take the whole minimiser within the radius, where no closure measures a candidate."""
    s = solve(radius=radius)
    finite = s.status is not Status.NONFINITE
    report = OptimizerReport(
        OptimizerStatus.ACCEPTED if finite else OptimizerStatus.NONFINITE_CURVATURE,
        iterations=s.iterations,
        radius=radius,
        step_scale=float(finite),
        solver_status=s.status,
    )
    return RadiusSearch(start.theta + rates * s.x if finite else None, radius, report)


def _cut(radius: float, length: Tensor, attempt: int = 0) -> float:
    """A quarter of a refused step: one inside the radius stays the same until the radius cuts it.

    After six candidates the cuts square, so that ten span 12 decades and not 6: a saturated model
    bends at 1e-9 of its Gauss-Newton step.
    """
    return max(min(radius, float(length)) / 4.0 ** (1 << min(max(attempt - 5, 0), 3)), SMALLEST)
