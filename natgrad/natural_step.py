"""The natural-gradient step: metric, solver and step size combined in one function."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from natgrad.solvers import Solution, Status, cg
from natgrad.solvers.scaling import inner_products, norm
from natgrad.trust_region import StepSizeStatus, step_size

Solver = Callable[..., Solution[Tensor]]


@dataclass(frozen=True)
class Step:
    """The step d = α s, or the reason why there is none.

    Attributes
    ----------
    d
        The step (n,): add it to go up along g, subtract it to go down. 0 unless ``status`` is OK.
    solution
        The solver's result, with s such that (K + λI) s = g.
    status
        OK, or the reason why d is 0.
    scale
        The factor α, a 0-d float64 tensor.
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
    """Compute the longest d = α s, (K + λI) s = g, with ½ dᵀK d <= ``bound`` and α <= ``longest``.

    dᵀK d leaves the damping out: with it, every step would be shorter than the bound allows. It
    is computed from the K s that the solver returns, so that no further product is needed.

    Parameters
    ----------
    K
        The metric, an operator (n, n) with ``K @ v``: a Fisher or Gauss-Newton matrix.
    g
        The gradient (n,).
    damping
        λ >= 0. Raise it if K is singular or estimated from few samples.
    bound
        The largest ½ dᵀK d allowed, in nats if K is a Fisher matrix. None: no bound.
    longest
        The largest α allowed: 1 is a full Gauss-Newton step. A tensor (n,), one entry a parameter,
        scales s entry by entry first and costs one product.
    solver
        ``(K, g, damping=λ) -> Solution`` of (K + λI) s = g with K s as its ``Ax``, such as
        ``functools.partial(cg, max_iterations=10)``. A solver without a ``damping`` argument gets
        ``K.damped(λ)``, at one product more.

    Returns
    -------
    Step
        With d = 0 and the status NONFINITE if s or a product is not finite, NONPOSITIVE_CURVATURE
        if dᵀK d is below 0 by more than rounding (or is 0, with no other bound on the step), and
        NOT_DESCENT if gᵀd <= 0.

    Raises
    ------
    ValueError
        If ``bound`` is not positive and finite. Errors of the solver pass through.

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
    if cap.ndim:  # scaled entry by entry, s changes direction: K s must be computed again
        s, cap = cap * s, torch.ones_like(cap[0])
        Ks = K @ s
    slope, sKs = inner_products(g, s), inner_products(s, Ks)

    def step(status: StepSizeStatus, alpha: Tensor) -> Step:
        d = (alpha * s).to(s) if status is StepSizeStatus.OK else torch.zeros_like(s)
        return Step(d, solution, status, alpha, alpha * slope, alpha.square() * sKs)

    nothing = torch.zeros_like(sKs)
    # One read-back from the device for all decisions but those on α.
    rise, curvature = torch.stack([slope, sKs]).tolist()
    if solution.status is Status.NONFINITE or not math.isfinite(rise + curvature):
        return step(StepSizeStatus.NONFINITE, nothing)
    if curvature < 0:
        if curvature < -float(torch.finfo(s.dtype).eps * norm(s) * norm(Ks)):
            return step(StepSizeStatus.NONPOSITIVE_CURVATURE, nothing)
        sKs = nothing  # a negative sᵀK s within the rounding of the product: K is flat along s
    alpha, sized = cap.double(), StepSizeStatus.OK
    if bound is not None:
        bounded, sized = step_size(sKs, bound)
        if sized is StepSizeStatus.OK:  # else sᵀK s is so small that the bound does not limit α
            alpha = torch.minimum(alpha, torch.as_tensor(bounded))
    if not math.isfinite(float(alpha)):
        refused = StepSizeStatus.NONPOSITIVE_CURVATURE if sized is StepSizeStatus.OK else sized
        return step(refused, nothing)
    if not rise > 0:
        return step(StepSizeStatus.NOT_DESCENT, nothing)
    return step(StepSizeStatus.OK, alpha)


def _solve(solver: Solver, K: Any, g: Tensor, damping: float) -> Solution[Tensor]:
    """Solve (K + λI) s = g, with K s as ``Ax``, also by solvers without a ``damping`` argument."""
    if _takes_damping(solver):
        return solver(K, g, damping=damping)
    if not damping:
        return solver(K, g)
    found = solver(K.damped(damping), g)
    return replace(found, Ax=K @ found.x)


def _takes_damping(solver: Solver) -> bool:
    function: Any = solver
    while isinstance(function, partial) or hasattr(function, "__wrapped__"):
        function = function.func if isinstance(function, partial) else function.__wrapped__
    # inspect.signature takes 50 µs, which is much of a step on a small network.
    if (code := getattr(function, "__code__", None)) is not None:
        return "damping" in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    try:
        return "damping" in inspect.signature(solver).parameters
    except (TypeError, ValueError):  # functions written in C have no signature
        return False
