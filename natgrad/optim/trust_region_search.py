"""Candidates at ever smaller radii until one keeps what the model promises."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from natgrad.optim.optimizer import Start
from natgrad.optim.report import OptimizerReport, OptimizerStatus
from natgrad.solvers import Solution, Status
from natgrad.solvers.scaling import inner_products, length
from natgrad.trust_region import reduction_ratio, update_radius

SMALLEST = 2.0**-1000  # of a radius: a float's range ends below it
ON_BOUNDARY = (Status.BOUNDARY, Status.NEGATIVE_CURVATURE)
GROWTH = 2.0**100  # of a radius in which nothing can be measured


class SolveRadius(Protocol):
    def __call__(self, *, radius: float) -> Solution[Tensor]: ...


@dataclass(frozen=True)
class RadiusSearch:
    """θ to go on from or None, the ``radius`` of the next step, and what led to them."""

    theta: Tensor | None
    status: OptimizerStatus
    radius: float
    tried_radius: float
    solution: Solution[Tensor]
    iterations: int
    predicted: float
    actual: float

    def account(self, report: OptimizerReport) -> OptimizerReport:
        return replace(
            report,
            status=self.status,
            iterations=self.iterations,
            radius=self.tried_radius,
            predicted_reduction=self.predicted,
            actual_reduction=self.actual,
            step_scale=float(self.theta is not None),
            solver_status=self.solution.status,
        )


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
    """The first candidate θ + lr s, ‖s‖ <= radius, whose reduction ratio is above ``accept_ratio``.

    ``solve`` answers for every radius with s and A s, ``multiply`` is v ↦ A v, taken only where
    learning rates differ; ``norm`` is the one that the radius bounds. ``decrease(lr s)`` is that of
    the model, where the caller knows it better than −(gᵀs + ½ sᵀA s) to rounding. A refused
    candidate takes the radius to a quarter of its length, after six of them to less.
    ``bend(solution)`` is added to s, beyond what the quadratic model knows.
    """
    assert start.loss is not None
    loss = float(start.loss)
    eps = torch.finfo(start.theta.dtype).eps
    iterations, promised, hidden, seen_finite = 0, False, False, False
    quarters = 0.0  # the radius that quarters alone leave
    predicted = actual = math.nan
    status, tried = OptimizerStatus.NO_IMPROVEMENT, radius
    for attempt in range(max_attempts):
        tried, s = radius, solve(radius=radius)
        iterations = max(iterations, s.iterations)
        if s.status is Status.NONFINITE:
            status = OptimizerStatus.NONFINITE_CURVATURE
            break
        step = rates * s.x
        if decrease is None:
            image = multiply(step) if rates.ndim else rates * s.Ax
            slope = inner_products(start.gradient, step)
            predicted = -float(slope + inner_products(step, image) / 2)
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
            # Of a region that small, not of a small rate: a larger one may hold much more.
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
        # The ratio's guard against rounding must not take a rise that is none for a fall.
        risen = actual < -16 * eps * abs(loss) and predicted > 1e3 * eps * abs(loss)
        if ratio > accept_ratio and not (risen and accept_ratio >= 0):
            inside = s.status in (Status.CONVERGED, Status.STAGNATED) and not s.multiplier
            # A first radius that is the Cauchy length is met up to rounding, by a solve inside.
            met = not inside or float(norm(s.x)) >= (1 - math.sqrt(eps)) * radius
            if math.isfinite(radius):
                radius = max(update_radius(radius, ratio, at_boundary=met), SMALLEST)
            return RadiusSearch(
                theta, OptimizerStatus.ACCEPTED, radius, tried, s, iterations, predicted, actual
            )
        radius = _cut(radius, norm(s.x), attempt if seen_finite else 0)
        quarters = max(quarters, math.ldexp(radius, -2 * (max_attempts - attempt - 1)))
    else:
        radius = max(radius, quarters)
        if not promised and not hidden:
            status = OptimizerStatus.NOT_DESCENT
        elif promised and not seen_finite:
            status = OptimizerStatus.NONFINITE_LOSS
    return RadiusSearch(None, status, radius, tried, s, iterations, predicted, math.nan)


def _cut(radius: float, length: Tensor, attempt: int = 0) -> float:
    """A quarter of a refused step: one inside stays what it is until the radius cuts it.

    After six candidates the cuts square, so that ten span 12 decades and not 6: a saturated model
    bends at 1e-9 of its Gauss-Newton step.
    """
    return max(min(radius, float(length)) / 4.0 ** (1 << min(max(attempt - 5, 0), 3)), SMALLEST)
