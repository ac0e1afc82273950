"""The natural-gradient step: the answers to the three questions put together, once."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from natgrad.solvers import Solution, Status, cg
from natgrad.solvers.scaling import inner_products, norm
from natgrad.trust_region import StepSizeStatus, step_size

Solver = Callable[..., Solution[Tensor]]


@dataclass(frozen=True)
class Step:
    """The step d = α s, or why there is none.

    Attributes
    ----------
    d
        The step (n,), to be added to go up along g and subtracted to go down; 0 unless ``status``
        is OK.
    solution
        s with (K + λI) s = g, as the solver returned it.
    status
        OK, or why d is 0.
    scale
        α, a 0-d float64 tensor.
    slope
        gᵀd, the change of the objective to first order, a 0-d float64 tensor.
    curvature
        dᵀK d without the damping, a 0-d float64 tensor: ½ dᵀK d is the distance to second order.
    """

    d: Tensor
    solution: Solution[Tensor]
    status: StepSizeStatus
    scale: Tensor
    slope: Tensor
    curvature: Tensor


def natural_step(
    K: Any,
    g: Tensor,
    *,
    damping: float,
    bound: float | None = None,
    longest: float | Tensor = math.inf,
    solver: Solver = cg,
) -> Step:
    """d = α s with (K + λI) s = g, as long as ½ dᵀK d <= ``bound`` and α <= ``longest`` allow.

    dᵀK d is taken without the damping, with which every step would be shorter than the bound
    allows, and from the K s that the solver holds: no further product.

    Parameters
    ----------
    K
        The metric, an operator (n, n) with ``K @ v``: a Fisher or Gauss-Newton matrix.
    g
        The gradient (n,).
    damping
        λ >= 0. Raise it where K is singular or an estimate on few samples.
    bound
        The most that ½ dᵀK d may be, in nats where K is a Fisher matrix. None: no bound.
    longest
        The most that α may be: 1 is a full Gauss-Newton step. A tensor (n,), one entry a parameter,
        scales s entry by entry first and costs one product.
    solver
        ``(K, g, damping=λ) -> Solution`` of (K + λI) s = g with K s as its ``Ax``, such as
        ``functools.partial(cg, max_iterations=10)``. One that takes no ``damping`` is handed
        ``K.damped(λ)``, at one product more.

    Returns
    -------
    Step
        With the status NONFINITE where s or a product is not finite, NONPOSITIVE_CURVATURE where
        dᵀK d is below 0 by more than rounding (or 0, with nothing else to bound the step), and
        NOT_DESCENT where gᵀd <= 0; d is 0 then.

    Raises
    ------
    ValueError
        Where ``bound`` is not positive and finite; and whatever the solver raises.

    Notes
    -----
    Cost: the solver's products, two inner products in float64.
    Source: Schulman et al., "Trust region policy optimization", 2015, appendix C; α as a cap, so
    that steps vanish with the gradient, after Ba, Grosse & Martens 2017, section 3.4.

    Examples
    --------
    >>> K = torch.diag(torch.tensor([1.0, 4.0]))
    >>> step = natural_step(K, torch.ones(2), damping=0.0, bound=0.01)
    >>> step.d / step.scale, round(float(step.curvature), 6)
    (tensor([1.0000, 0.2500]), 0.02)
    """
    solution = _solve(solver, K, g, damping)
    s, Ks = solution.x, solution.Ax
    cap = torch.as_tensor(longest, dtype=s.dtype, device=s.device)
    if cap.ndim:  # D s, with D the caps, is no multiple of s
        s, cap = cap * s, torch.ones_like(cap[0])
        Ks = K @ s
    slope, sKs = inner_products(g, s), inner_products(s, Ks)

    def step(status: StepSizeStatus, alpha: Tensor) -> Step:
        d = (alpha * s).to(s) if status is StepSizeStatus.OK else torch.zeros_like(s)
        return Step(d, solution, status, alpha, alpha * slope, alpha.square() * sKs)

    nothing = torch.zeros_like(sKs)
    if solution.status is Status.NONFINITE or not bool(torch.isfinite(slope + sKs)):
        return step(StepSizeStatus.NONFINITE, nothing)
    # Below 0 by what rounding of the product explains is 0: s costs nothing to second order.
    if bool(sKs < -torch.finfo(s.dtype).eps * norm(s) * norm(Ks)):
        return step(StepSizeStatus.NONPOSITIVE_CURVATURE, nothing)
    sKs = torch.clamp(sKs, min=0.0)
    alpha, sized = cap.double(), StepSizeStatus.OK
    if bound is not None:
        bounded, sized = step_size(sKs, bound)
        if sized is StepSizeStatus.OK:  # where not, the bound is beyond all numbers
            alpha = torch.minimum(alpha, torch.as_tensor(bounded))
    if not bool(torch.isfinite(alpha)):
        refused = StepSizeStatus.NONPOSITIVE_CURVATURE if sized is StepSizeStatus.OK else sized
        return step(refused, nothing)
    if not bool(slope > 0):
        return step(StepSizeStatus.NOT_DESCENT, nothing)
    return step(StepSizeStatus.OK, alpha)


def _solve(solver: Solver, K: Any, g: Tensor, damping: float) -> Solution[Tensor]:
    """s and K s, by a solver that may not know of damping."""
    if _takes_damping(solver):
        return solver(K, g, damping=damping)
    if not damping:
        return solver(K, g)
    found = solver(K.damped(damping), g)
    return replace(found, Ax=K @ found.x)


def _takes_damping(solver: Solver) -> bool:
    try:
        parameters = inspect.signature(solver).parameters.values()
    except (TypeError, ValueError):  # written in C
        return False
    return any(p.name == "damping" for p in parameters)
