"""Nonlinear least squares: Gauss-Newton steps in a trust region, by the cheapest solver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from natgrad import flat
from natgrad.optim.least_squares_step import Method, cauchy_length, cheapest, step_for
from natgrad.optim.linearised import Linearised, is_residuals, of_model, of_residuals
from natgrad.optim.objective import Closure, Objective, as_loss
from natgrad.optim.report import StepReport, StepStatus
from natgrad.optim.second_order import (
    Outcome,
    Parameters,
    SecondOrderOptimizer,
    Start,
    require_least,
)
from natgrad.optim.trust_region_search import search_radius
from natgrad.solvers import Status


class LevenbergMarquardt(SecondOrderOptimizer):
    """θ ← θ + s, s minimising ½‖r + J s‖² + ½ λ‖s‖² over ‖s‖ <= Δ, for residuals r(θ) (m,).

    ``step(closure)`` takes either of two closures:

    - one that returns the residuals, a tensor (m,) with its graph, and calls no backward; the loss,
      which ``step`` returns, is ½‖r‖²;
    - the standard one, for ``LevenbergMarquardt(model)`` and a loss that is a sum or a mean of
      squared errors of the model's outputs, such as ``F.mse_loss(model(x), y)``.

    Δ, the ``radius``, follows the reduction ratio; a refused step is solved again at a smaller one
    from the same decomposition. The first, where it is None, is the length of the Cauchy step, so
    that nothing depends on the scale of the residuals; ``math.inf`` leaves λ, the ``damping``, to
    bound the step alone. ``step()`` without a closure, for a model and mean squared errors, goes
    as far as radius and damping allow, and measures nothing.

    ``method`` None chooses by the sizes, and ``last_step.solver`` says which: "dense" for m >= n
    (the singular values of J) and "sample_space" for m < n (the eigenvalues of J Jᵀ), both where
    min(m, n) <= 256; else "cg" (Steihaug's, from products with J). Where they converge they give
    the same step. ``jacobian()`` may return J (m, n) at the parameters as they are where something
    quicker than min(m, n) backward passes is known, ``torch.func.vmap`` over samples for example;
    then the limit is 4,000.

    ``momentum`` μ measures the step from the last one: λ and Δ bound s − μ s_last.

    Raises ``ValueError`` for settings out of range, residuals without a graph, a loss that is not
    of squared errors; ``RuntimeError`` where no batch of the model is known.

    Source: Moré, "The Levenberg-Marquardt algorithm: implementation and theory", 1978; the momentum
    of Goldshlager, Abrahamsen & Lin, "A Kaczmarz-inspired approach to accelerate the optimization
    of neural network wavefunctions" (SPRING), 2024, equation 16, whose rule this is for
    ``radius=math.inf``. Different from Moré: the region is a ball in θ, not scaled by column norms.

    >>> x = torch.tensor([-1.2, 1.0], dtype=torch.float64, requires_grad=True)
    >>> optimizer = LevenbergMarquardt([x])
    >>> for _ in range(30):
    ...     loss = optimizer.step(lambda: torch.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]]))
    >>> x.tolist(), optimizer.last_step.status.name
    ([1.0, 1.0], 'CONVERGED')
    """

    whole = ("radius", "damping", "momentum")

    def __init__(
        self,
        params: nn.Module | Parameters,
        *,
        model: nn.Module | None = None,
        jacobian: Callable[[], Tensor] | None = None,
        lr: float = 1.0,
        radius: float | None = None,
        damping: float = 0.0,
        momentum: float = 0.0,
        method: Method | None = None,
        accept_ratio: float = 1e-3,
        max_attempts: int = 10,
        rtol: float = 1e-6,
        max_iterations: int | None = None,
    ) -> None:
        if method not in (None, "dense", "sample_space", "cg"):
            raise ValueError(
                f'method must be "dense", "sample_space", "cg" or None, got {method!r}'
            )
        self._jacobian, self._method = jacobian, method
        self._accept_ratio, self._max_attempts = accept_ratio, max_attempts
        self._rtol, self._max_iterations = rtol, max_iterations
        defaults = {"lr": lr, "radius": radius, "damping": damping, "momentum": momentum}
        super().__init__(params, defaults, model)

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        require_least(group, 0, "damping", "momentum")
        if group["radius"] is not None:
            require_least(group, 0, "radius", exclusive=True)

    def _objective(self, closure: Closure, sign: float) -> Objective:
        return Objective(closure, self._parameters()[0].device, sign, loss_of=_loss_of)

    def _start(self, returned: Any, objective: Objective | None, sign: float) -> Start:
        if not is_residuals(returned):
            return super()._start(returned, objective, sign)
        if not returned.requires_grad:
            raise ValueError(
                "the residuals that the closure returned carry no graph; compute them from the "
                "parameters, with gradients enabled"
            )
        parameters = [p for p in self._parameters() if p.requires_grad]
        with torch.enable_grad():
            # Not ½‖r‖² with its float32 sum: the same gradient from the residuals themselves.
            scalar = returned.reshape(-1) @ returned.detach().reshape(-1)
        gradient = flat.gradient(scalar, parameters, retain_graph=True)
        return Start(parameters, flat.flatten(parameters), gradient, _loss_of(returned), objective)

    def _told(self, returned: Any) -> Any:
        return _loss_of(returned).to(returned.dtype) if is_residuals(returned) else returned

    def _linearised(self, start: Start) -> Linearised:
        if start.objective is not None and is_residuals(start.objective.returned):
            return of_residuals(start.objective.returned, start.parameters, self._jacobian)
        return of_model(self._observed, start)

    def _find(self, start: Start) -> Outcome:
        linear = self._linearised(start)
        damping, momentum = float(self._setting("damping")), float(self._setting("momentum"))
        last = self._remembered("last_step", start.parameters) if momentum else None
        method = self._method or cheapest(linear)
        radius = self._setting("radius") or cauchy_length(linear, start.gradient, start.theta)
        solve = step_for(
            linear, method, damping=damping, prior=None if last is None else momentum * last,
            rtol=self._rtol, max_iterations=self._max_iterations,
        )  # fmt: skip
        rates = self._rates(start.parameters)
        report = StepReport(StepStatus.ACCEPTED, solver=method, damping=damping, radius=radius)
        if start.loss is None:
            s = solve(radius=radius)
            report = replace(
                report, products=linear.products, iterations=s.iterations, solver_status=s.status
            )
            if s.status is Status.NONFINITE:
                return Outcome(None, replace(report, status=StepStatus.NONFINITE_CURVATURE))
            theta, report = start.theta + rates * s.x, replace(report, step_scale=1.0)
        else:
            found = search_radius(
                start, solve, radius, rates, linear.multiply,
                accept_ratio=self._accept_ratio, max_attempts=self._max_attempts,
            )  # fmt: skip
            self._keep("radius", found.radius)
            report = replace(found.account(report), products=linear.products)
            if found.theta is None:
                return Outcome(None, report)
            theta = found.theta
        if momentum:
            self._remember("last_step", start.parameters, theta - start.theta)
        return Outcome(theta, report)


def _loss_of(returned: Any) -> Tensor:
    """½‖r‖² of residuals, the loss itself otherwise, 0-d float64."""
    if not is_residuals(returned):
        return as_loss(returned)
    residuals: Tensor = returned.detach().double()
    return residuals.square().sum() / 2
