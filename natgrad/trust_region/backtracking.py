"""Backtracking line search under an objective and a constraint."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

Scalar = Tensor | float
Evaluate = Callable[[Tensor], tuple[Scalar, Scalar]]


class LineSearchStatus(Enum):
    """How a search ended. Anything but ACCEPTED names why the *last* candidate was refused."""

    ACCEPTED = "the step was accepted"
    CONSTRAINT_VIOLATED = (
        "the constraint exceeded its bound: lower the step or allow more backtracks"
    )
    NO_IMPROVEMENT = "the objective fell by less than asked: is the step a descent direction?"
    NONFINITE = "the objective, the constraint or the point itself was NaN or infinite"
    ZERO_STEP = "the step is zero or not finite; nothing was evaluated"
    ZERO_GRADIENT = (
        "the gradient is exactly zero, so that there is nothing to search along. Of a policy whose "
        "advantages are not: its log-probabilities do not depend on its parameters, or it is so "
        "certain of its actions that they do not change in this dtype"
    )


@dataclass(frozen=True)
class LineSearchResult:
    """What the search decided.

    ``theta`` is the point to go on from: the accepted candidate, or ``start`` itself, the same
    tensor. ``fraction`` is the accepted part of the step, 0 where refused. ``objective`` and
    ``constraint`` belong to ``theta`` if accepted, else to the last candidate (NaN if there was
    none); ``improvement`` is objective at start minus ``objective``. ``evaluations`` counts calls
    of ``evaluate``.
    """

    theta: Tensor
    status: LineSearchStatus
    fraction: float
    objective: float
    constraint: float
    improvement: float
    evaluations: int

    @property
    def accepted(self) -> bool:
        return self.status is LineSearchStatus.ACCEPTED


def backtracking(
    evaluate: Evaluate,
    start: Tensor,
    step: Tensor,
    *,
    bound: float = 0.0,
    start_objective: Scalar | None = None,
    expected_improvement: Scalar | None = None,
    accept_ratio: float = 0.1,
    shrink: float = 0.5,
    max_backtracks: int = 10,
) -> LineSearchResult:
    """The first of start + shrinkʲ · step, j = 0 … max_backtracks, that is good enough.

    ``evaluate(theta)`` returns (objective, constraint) at a vector theta (n,), as numbers or 0-d
    tensors; the objective is *minimised*. A candidate is accepted where it and both values are
    finite, constraint <= ``bound``, and the objective falls below ``start_objective`` (evaluated at
    ``start`` where None): by ``accept_ratio`` times the improvement expected of that candidate if
    ``expected_improvement`` (that of the whole step, to first order −gᵀstep) is given, by anything
    more than 0 if not.

    A rejected search leaves ``start`` bitwise as it was and returns it. Where ``evaluate`` writes
    its argument into a model, write ``result.theta`` back into it afterwards, whatever the status,
    and ``start`` where an exception comes out of it.

    Gradients are off inside ``evaluate``. Cost: at most max_backtracks + 1 evaluations, one more
    where ``start_objective`` is None. One read-back from the device an evaluation: the decision
    needs it.

    Raises ``ValueError`` for settings out of range and steps of another shape than ``start``.

    Source: Nocedal & Wright, *Numerical Optimization*, 2006, algorithm 3.1; the constraint after
    Schulman et al. 2015, appendix C. Different from both: NaN rejects, in every comparison.

    >>> result = backtracking(lambda t: (t @ t, 0.0), torch.ones(1), torch.tensor([-3.0]))
    >>> result.theta.item(), result.fraction                    # 1 - 3 is worse, 1 - 1.5 is better
    (-0.5, 0.5)
    """
    _check(start, step, bound, shrink, accept_ratio, max_backtracks)
    nan = math.nan
    if not bool(torch.isfinite(step).all()) or not bool(step.any()):
        return LineSearchResult(start, LineSearchStatus.ZERO_STEP, 0.0, nan, nan, nan, 0)

    evaluations = 0
    with torch.no_grad():
        if start_objective is None:
            start_objective, _ = evaluate(start)
            evaluations += 1
        base = _number(start_objective)
        expected = 0.0 if expected_improvement is None else _number(expected_improvement)
        if not math.isfinite(base) or not math.isfinite(expected):
            status = LineSearchStatus.NONFINITE
            return LineSearchResult(start, status, 0.0, base, nan, nan, evaluations)
        for backtrack in range(max_backtracks + 1):
            fraction = shrink**backtrack
            theta = torch.add(start, step, alpha=fraction)
            if not bool(torch.isfinite(theta).all()):  # a sum that overflowed; half may not
                objective = constraint = improvement = nan
                status = LineSearchStatus.NONFINITE
                continue
            objective, constraint = map(_number, evaluate(theta))
            evaluations += 1
            improvement = base - objective
            if not (math.isfinite(objective) and math.isfinite(constraint)):
                status = LineSearchStatus.NONFINITE
            elif constraint > bound:
                status = LineSearchStatus.CONSTRAINT_VIOLATED
            elif improvement <= max(0.0, accept_ratio * fraction * expected):
                status = LineSearchStatus.NO_IMPROVEMENT
            else:
                status = LineSearchStatus.ACCEPTED
                break
    accepted = status is LineSearchStatus.ACCEPTED
    return LineSearchResult(
        theta if accepted else start,
        status,
        fraction if accepted else 0.0,
        objective,
        constraint,
        improvement,
        evaluations,
    )


def _number(value: Scalar) -> float:
    return float(value)


def _check(
    start: Tensor,
    step: Tensor,
    bound: float,
    shrink: float,
    accept_ratio: float,
    max_backtracks: int,
) -> None:
    if math.isnan(bound):
        raise ValueError("bound must be a number, got nan; infinity means no constraint")
    if start.shape != step.shape or start.dtype != step.dtype:
        raise ValueError(
            f"start and step must be alike, got {tuple(start.shape)} {start.dtype} and "
            f"{tuple(step.shape)} {step.dtype}"
        )
    if not 0 < shrink < 1:
        raise ValueError(f"shrink must lie strictly between 0 and 1, got {shrink}")
    if not 0 <= accept_ratio < 1:
        raise ValueError(f"accept_ratio must lie in [0, 1), got {accept_ratio}")
    if max_backtracks < 0:
        raise ValueError(f"max_backtracks must be at least 0, got {max_backtracks}")
