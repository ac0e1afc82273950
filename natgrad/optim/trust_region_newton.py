"""Newton's method in a trust region, with the exact Hessian."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from natgrad.curvature import Hessian, LinearOperator
from natgrad.optim.arguments import require_counts, require_least
from natgrad.optim.objective import ClosureForm, Start
from natgrad.optim.optimizer import Parameters, Proposal, SecondOrderOptimizer
from natgrad.optim.report import OptimizerStatus
from natgrad.optim.trust_region_search import search_radius
from natgrad.solvers import Solution, SteihaugPath
from natgrad.solvers.scaling import length, norm, power_of_two


class RadiusSolver(Protocol):
    """The model's minimiser for any radius, :class:`natgrad.SteihaugPath` for example."""

    def solve(self, *, radius: float) -> Solution[Tensor]: ...


RegionSolver = Callable[[LinearOperator, Tensor, float], RadiusSolver]


def steihaug_path(A: LinearOperator, g: Tensor, rtol: float) -> RadiusSolver:
    """Steihaug's truncated conjugate gradients: see :func:`natgrad.steihaug`."""
    return SteihaugPath(A, g, rtol=rtol)


class TrustRegionNewton(SecondOrderOptimizer):
    """Minimise by θ ← θ + s, where s minimises gᵀs + ½ sᵀH s over ‖s‖ <= Δ, H the exact Hessian.

    H may be indefinite. ``step(closure)`` needs the standard closure, ``loss.backward()`` inside it
    included: the graph that this call starts from is kept for the products with H. A refused
    candidate shrinks the radius, and the same Krylov path is cut shorter, at no further product.

    Parameters
    ----------
    params
        Parameters, named parameters or groups, as torch.optim takes them.
    lr
        The factor on s, a setting of each group. Below 1 for noisy losses.
    radius
        Δ > 0 of the first step; it follows the reduction ratio from there. None: the length of the
        Cauchy step, so that nothing depends on the scale of the loss.
    rtol
        The subproblem is solved to the relative residual ``min(rtol, √(‖g‖ / ‖g₀‖))``, ‖g₀‖ the
        largest gradient so far. Lower it for fewer, more expensive steps.
    accept_ratio
        The share of the predicted reduction that an accepted step achieves at least. Raise it to
        refuse steps of little use.
    max_attempts
        Candidates of a step at most. Raise it where long steps overflow.
    maximize
        Whether to ascend.
    solver
        ``(H, g, rtol) ->`` an object with ``solve(radius=)``, which returns a
        :class:`natgrad.Solution`. ``lambda H, g, rtol: natgrad.lanczos(H, -g, rtol=rtol)`` finds
        the model's global minimiser.

    Raises
    ------
    TypeError
        From ``step`` without a closure.
    ValueError
        For settings out of range, and from ``step`` if the closure calls no ``loss.backward()``.

    Notes
    -----
    Cost, beyond the closure: one backward pass of set-up, about 2 gradients a product, a forward
    pass a candidate; four vectors an iteration.

    Source: Steihaug 1983; Nocedal & Wright, *Numerical Optimization*, 2006, algorithms 4.1, 7.2.

    Examples
    --------
    >>> x = torch.tensor([-1.2, 1.0], dtype=torch.float64, requires_grad=True)
    >>> optimizer = TrustRegionNewton([x])
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
    ...     loss.backward()
    ...     return loss
    >>> for _ in range(50):
    ...     _ = optimizer.step(closure)
    >>> x.tolist()
    [1.0, 1.0]
    """

    whole = ("radius", "largest_gradient", "maximize")
    _closure_form = ClosureForm.GRAPH

    def __init__(
        self,
        params: Parameters,
        *,
        lr: float = 1.0,
        radius: float | None = None,
        rtol: float = 0.1,
        accept_ratio: float = 0.1,
        max_attempts: int = 10,
        maximize: bool = False,
        solver: RegionSolver = steihaug_path,
    ) -> None:
        require_least({"rtol": rtol}, 0, "rtol")
        require_least({"accept_ratio": accept_ratio}, -math.inf, "accept_ratio")
        require_counts(max_attempts=max_attempts)
        self._rtol, self._accept_ratio, self._max_attempts = rtol, accept_ratio, max_attempts
        self._solver = solver
        defaults = {
            "lr": lr,
            "radius": radius,
            "largest_gradient": 0.0,
            "maximize": maximize,
        }
        super().__init__(params, defaults, None)

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        if group["radius"] is not None:
            require_least(group, 0, "radius", exclusive=True)

    def _compute_step(self, start: Start) -> Proposal:
        objective = start.objective
        if objective is None:
            raise TypeError(
                "TrustRegionNewton needs step(closure), and the loss that the closure returns: "
                "zero_grad(), compute the loss, loss.backward(), return loss"
            )
        H = Hessian(objective.root(), start.parameters)
        g = start.gradient
        g_norm = float(torch.linalg.vector_norm(g, dtype=torch.float64))
        largest = max(float(self._setting("largest_gradient")), g_norm)
        self._set_for_all_groups("largest_gradient", largest)
        radius = self._setting("radius")
        if radius is None:
            radius = _cauchy_length(H, g, start.theta)
        path = self._solver(H, g, min(self._rtol, (g_norm / largest) ** 0.5))
        found = search_radius(
            start,
            path.solve,
            radius,
            self._per_parameter("lr", start.parameters),
            H.__matmul__,
            accept_ratio=self._accept_ratio,
            max_attempts=self._max_attempts,
        )
        if found.report.status is not OptimizerStatus.NONFINITE_CURVATURE:
            self._set_for_all_groups("radius", found.radius)
        report = replace(found.report, solver="steihaug", products=H.products)
        return Proposal(found.theta, report)


def _cauchy_length(H: LinearOperator, given: Tensor, theta: Tensor) -> float:
    """‖g‖³ / |gᵀH g|, how far the model falls along −g; ‖θ‖, or 1, where it has no curvature."""
    size = power_of_two(given).double()
    g = given.double() / size
    unit = g / norm(g)
    curvature = unit @ (H @ unit.to(given)).double()
    found = norm(g) / curvature.abs() * size
    if not bool((found > 0) & torch.isfinite(found)):
        found = length(theta)
    return float(found) or 1.0
