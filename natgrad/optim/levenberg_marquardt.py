"""Nonlinear least squares: Gauss-Newton steps in a trust region, by the cheapest solver."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from natgrad import flat
from natgrad.autodiff.graph import Graph
from natgrad.optim.least_squares_step import LeastSquaresStep, Method, cauchy_length, cheapest
from natgrad.optim.linearised import Linearised, is_residuals, of_model, of_residuals
from natgrad.optim.objective import Closure, Objective, as_loss
from natgrad.optim.optimizer import (
    Parameters,
    Proposal,
    SecondOrderOptimizer,
    Start,
)
from natgrad.optim.report import OptimizerReport, OptimizerStatus
from natgrad.optim.settings import require_least
from natgrad.optim.trust_region_search import RadiusSearch, search_radius
from natgrad.solvers import Solution, Status

PROBE = 0.1  # of a step, for the residuals' second derivative along it


class LevenbergMarquardt(SecondOrderOptimizer):
    """θ ← θ + s, s minimising ½‖r + J s‖² + ½ λ‖s‖² over ‖s‖ <= Δ, for residuals r(θ) (m,).

    ``step(closure)`` takes either of two closures:

    - one that returns the residuals, a tensor (m,) with its graph, and calls no backward; the loss,
      which ``step`` returns, is ½‖r‖². Complex residuals count as their real and imaginary parts;
    - the standard one, for ``LevenbergMarquardt(model)`` and a loss that is a sum or a mean of
      squared errors of the model's outputs, such as ``F.mse_loss(model(x), y)``.

    Δ, the ``radius``, follows the reduction ratio; a refused step is solved again at a smaller one
    from the same decomposition. The first, where it is None, is the length of the Cauchy step, so
    that nothing depends on the scale of the residuals; ``math.inf`` leaves λ, the ``damping``, to
    bound the step alone. ``step()`` without a closure, for a model and mean squared errors, goes
    as far as radius and damping allow, and measures nothing.

    ``solver`` None chooses by the sizes, and ``last_step.solver`` says which: "dense" for m >= n
    (the singular values of J) and "sample_space" for m < n (the eigenvalues of J Jᵀ, in float64; of
    J itself where squares have lost some), both where min(m, n) <= 256; else "cg" (Steihaug's, from
    products with J). Where they converge they give the same step, and none lowers the damped model
    by less than half of what the Cauchy step inside the radius does: where rounding, or a J beyond
    a solver, leaves less, that is the step. ``jacobian()`` may return J (m, n) at the parameters as
    they are where something quicker than min(m, n) backward passes is known, ``torch.func.vmap``
    over samples for example; then the limit is 4,000.

    ``momentum`` μ measures the step from the last one: λ and Δ bound s − μ s_last; where no such
    step is accepted, it is made without. ``scaled`` measures it by D, the largest norm that each
    column of J has had, so that rescaled parameters change nothing. ``acceleration`` above 0 bends
    each step along the curve of the residuals: by half its second-order term a, which takes one
    more call of the closure and no decomposition, where ‖a‖ is at most so many times ‖s‖; its
    authors have 0.75. In curved valleys, those of physics-informed networks for example, it saves
    several steps of two. Both need J itself.

    Raises ``ValueError`` for settings out of range, residuals without a graph, a loss that is not
    of squared errors; ``RuntimeError`` where no batch of the model is known.

    Source: Moré, "The Levenberg-Marquardt algorithm: implementation and theory", 1978; the momentum
    of Goldshlager, Abrahamsen & Lin, "A Kaczmarz-inspired approach to accelerate the optimization
    of neural network wavefunctions" (SPRING), 2024, equation 16, whose rule this is for
    ``radius=math.inf``; the acceleration of Transtrum & Sethna, "Improvements to the
    Levenberg-Marquardt algorithm for nonlinear least-squares minimization", 2012, section 3.

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
        solver: Method | None = None,
        accept_ratio: float = 1e-3,
        max_attempts: int = 10,
        scaled: bool = False,
        acceleration: float = 0.0,
        rtol: float = 1e-6,
        max_iterations: int | None = None,
        method: Method | None = None,
    ) -> None:
        if method is not None and solver not in (None, method):
            raise ValueError(f"method is the former name of solver; got {method!r} and {solver!r}")
        solver = solver or method
        if solver not in (None, "dense", "sample_space", "cg"):
            raise ValueError(
                f'solver must be "dense", "sample_space", "cg" or None, got {solver!r}'
            )
        self._jacobian, self._solver = jacobian, solver
        self._accept_ratio, self._max_attempts = accept_ratio, max_attempts
        self._scaled, self._acceleration = scaled, acceleration
        self._rtol, self._max_iterations = rtol, max_iterations
        defaults = {"lr": lr, "radius": radius, "damping": damping, "momentum": momentum}
        super().__init__(params, defaults, model)

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        require_least(group, 0, "damping", "momentum")
        if group["radius"] is not None:
            require_least(group, 0, "radius", exclusive=True)

    def _objective(self, closure: Closure, sign: float) -> Objective:
        return Objective(
            partial(_called, closure),
            self._parameters()[0].device,
            sign,
            loss_of=_loss_of,
            uncompiled=True,
        )

    def _start(self, returned: Any, objective: Objective | None, sign: float) -> Start:
        if not is_residuals(returned):
            return super()._start(returned, objective, sign)
        if not returned.numel():
            raise ValueError(
                f"no residuals: the closure returned a tensor of shape {tuple(returned.shape)}"
            )
        if not returned.requires_grad:
            raise ValueError(
                "the residuals that the closure returned carry no graph; compute them from the "
                "parameters, with gradients enabled"
            )
        parameters = [p for p in self._parameters() if p.requires_grad]
        with torch.enable_grad():
            # Not ½‖r‖² with its float32 sum: the same gradient from the residuals themselves.
            scalar = returned.reshape(-1) @ returned.detach().reshape(-1)
        # Jᵀr as it is: a hook that clips gradients would part it from J.
        with Graph([returned]).unhooked(parameters):
            gradient = flat.gradient(scalar, parameters, retain_graph=True)
        return Start(parameters, flat.flatten(parameters), gradient, _loss_of(returned), objective)

    def _return_value(self, returned: Any) -> Any:
        return _loss_of(returned).to(returned.dtype) if is_residuals(returned) else returned

    def _linearised(self, start: Start) -> Linearised:
        if start.objective is not None and is_residuals(start.objective.returned):
            return of_residuals(start.objective.returned, start.parameters, self._jacobian)
        return of_model(self._observed, start)

    def _compute_step(self, start: Start) -> Proposal:
        linear = self._linearised(start)
        damping, momentum = float(self._setting("damping")), float(self._setting("momentum"))
        method = self._solver or cheapest(linear)
        if method != "cg":
            linear.dense()  # before anything asks for products, which need second derivatives
        scale = self._scale(linear, method, start) if self._scaled else None
        last = self._remembered("last_step", start.parameters) if momentum else None
        radius = self._setting("radius")
        if radius is None:
            radius = cauchy_length(linear, start.gradient, start.theta, scale)
        report = OptimizerReport(
            OptimizerStatus.ACCEPTED, solver=method, damping=damping, radius=radius
        )
        rates = self._per_parameter("lr", start.parameters)

        def step_from(prior: Tensor | None) -> LeastSquaresStep:
            return LeastSquaresStep(
                linear,
                method,
                damping=damping,
                prior=prior,
                scale=scale,
                rtol=self._rtol,
                max_iterations=self._max_iterations,
            )

        solve = step_from(None if last is None else momentum * last)
        if start.loss is None:
            s = solve(radius=radius)
            report = replace(
                report, products=linear.products, iterations=s.iterations, solver_status=s.status
            )
            if s.status is Status.NONFINITE:
                return Proposal(None, replace(report, status=OptimizerStatus.NONFINITE_CURVATURE))
            theta, report = start.theta + rates * s.x, replace(report, step_scale=1.0)
        else:
            found = self._search(start, linear, method, solve, radius, rates)
            if found.theta is None and last is not None:
                found = self._search(start, linear, method, step_from(None), radius, rates)
            if math.isfinite(radius) and found.status is not OptimizerStatus.NONFINITE_CURVATURE:
                self._set_for_all_groups("radius", found.radius)
            report = replace(found.account(report), products=linear.products)
            if found.theta is None:
                return Proposal(None, report)
            theta = found.theta
        if momentum:
            self._remember("last_step", start.parameters, theta - start.theta)
        return Proposal(theta, report)

    def _search(
        self,
        start: Start,
        linear: Linearised,
        method: Method,
        solve: LeastSquaresStep,
        radius: float,
        rates: Tensor,
    ) -> RadiusSearch:
        return search_radius(
            start,
            solve,
            radius,
            rates,
            linear.multiply,
            norm=solve.norm,
            accept_ratio=self._accept_ratio,
            max_attempts=self._max_attempts,
            decrease=solve.decrease,
            bend=self._bend(start, linear, method, solve),
        )

    def _scale(self, linear: Linearised, method: Method, start: Start) -> Tensor:
        """D: the largest norm that each column of J has had (Moré 1978, equation 6.2)."""
        if method == "cg":
            raise ValueError(
                "scaled=True needs J itself, but the method is 'cg' for these sizes: give "
                'jacobian=..., or solver="dense" or "sample_space"'
            )
        norms = linear.column_norms()
        known = self._remembered("scale", start.parameters)
        norms = norms if known is None else torch.maximum(norms, known)
        if bool(torch.isfinite(norms).all()):
            self._remember("scale", start.parameters, norms)
        return torch.where(norms > 0, norms, torch.ones_like(norms))

    def _bend(
        self, start: Start, linear: Linearised, method: Method, solve: LeastSquaresStep
    ) -> Callable[[Solution[Tensor]], Tensor] | None:
        limit, objective = self._acceleration, start.objective
        if not limit:
            return None
        if method == "cg" or objective is None or not is_residuals(objective.returned):
            raise ValueError(
                "acceleration needs a closure that returns residuals, and J itself, which method "
                "'cg' does not form: set acceleration=0, or give jacobian=..."
            )

        def bend(s: Solution[Tensor]) -> Tensor:
            # r(θ + h s) = r + h J s + ½ h² r″ + O(h³)
            theta = start.theta + PROBE * s.x
            r = objective.at(start.parameters, theta, start.theta).detach().reshape(-1)
            second = 2 / PROBE * ((r - linear.r) / PROBE - linear.forward(s.x))
            finite = torch.isfinite(second).all()
            return solve.bend(s, torch.where(finite, second, 0.0), limit)

        return bend


def _called(closure: Closure) -> Any:
    """What a closure returns, complex residuals as twice as many real ones."""
    returned = closure()
    if is_residuals(returned) and returned.is_complex():
        return torch.view_as_real(returned)
    return returned


def _loss_of(returned: Any) -> Tensor:
    """½‖r‖² of residuals, the loss itself otherwise, 0-d float64."""
    if not is_residuals(returned):
        return as_loss(returned)
    residuals: Tensor = returned.detach().double()
    return residuals.square().sum() / 2
