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
    NONFINITE = (
        "the objective, the constraint, the step or the point itself was NaN or infinite: look for "
        "NaN in what the gradient was computed from (rewards, advantages, observations)"
    )
    ZERO_STEP = "the step is zero; nothing was evaluated"
    ZERO_GRADIENT = (
        "the gradient is exactly zero, so that there is nothing to search along. Of a policy whose "
        "advantages are not: its log-probabilities do not depend on its parameters, or it is so "
        "certain of its actions that they do not change in this dtype"
    )


@dataclass(frozen=True)
class LineSearchResult:
    """The outcome of a search.

    Attributes
    ----------
    theta
        The point to go on from: the accepted candidate, or ``start`` itself, the same tensor.
    status
        ACCEPTED, or why the last candidate was refused.
    fraction
        The accepted part of the step, 0 where refused.
    objective, constraint
        At ``theta`` if accepted, else at the last candidate (NaN if there was none).
    improvement
        The objective at the start minus ``objective``.
    evaluations
        The number of calls of ``evaluate``.
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
        """Whether the status is ACCEPTED."""
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
    """The first of start + shrinkʲ · step, j = 0 … max_backtracks, that is accepted.

    Parameters
    ----------
    evaluate
        θ (n,) ↦ (objective, constraint), as numbers or 0-d tensors; the objective is *minimised*.
        Gradients are off inside.
    start, step
        Vectors (n,) alike in dtype.
    bound
        The largest constraint accepted; infinite for none.
    start_objective
        The objective at ``start``; evaluated where None.
    expected_improvement
        The improvement expected of the whole step, to first order −gᵀstep; 0 where None.
    accept_ratio
        The share of the expected improvement, in [0, 1), that a candidate must bring. Raise it to
        refuse steps that bring little.
    shrink
        Factor of the step after a refusal, in (0, 1).
    max_backtracks
        Bound on the refusals, >= 0.

    Returns
    -------
    LineSearchResult
        Accepted where the candidate and both values are finite, constraint <= ``bound``, and the
        objective falls below ``start_objective``: by ``accept_ratio`` times the improvement
        expected of that candidate where given, by anything more than 0 where not.

    Raises
    ------
    ValueError
        For settings out of range and steps of another shape than ``start``.

    Notes
    -----
    A rejected search leaves ``start`` bitwise as it was and returns it. Where ``evaluate`` writes
    its argument into a model, write ``result.theta`` back into it afterwards, for every status,
    and ``start`` where ``evaluate`` raises an exception.

    Cost: at most max_backtracks + 1 evaluations, one more where ``start_objective`` is None. One
    read-back from the device an evaluation, to decide.

    Source: Nocedal & Wright, *Numerical Optimization*, 2006, algorithm 3.1; the constraint after
    Schulman et al. 2015, appendix C. Difference: NaN rejects, in every comparison.

    Examples
    --------
    >>> result = backtracking(lambda t: (t @ t, 0.0), torch.ones(1), torch.tensor([-3.0]))
    >>> result.theta.item(), result.fraction                    # 1 - 3 is worse, 1 - 1.5 is better
    (-0.5, 0.5)
    """
    _check(start, step, bound, shrink, accept_ratio, max_backtracks)
    nan = math.nan
    if not bool(torch.isfinite(step).all()):
        return LineSearchResult(start, LineSearchStatus.NONFINITE, 0.0, nan, nan, nan, 0)
    if not bool(step.any()):
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
            if not bool(torch.isfinite(theta).all()):  # the sum overflowed; a shorter step may not
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
