"""Nonlinear least squares: Gauss-Newton steps in a trust region, by the cheapest solver."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from natgrad.optim.arguments import require_counts, require_least
from natgrad.optim.least_squares_step import LeastSquaresStep
from natgrad.optim.linearised import Linearised, Method, cauchy_length, linearise
from natgrad.optim.objective import ClosureForm, Start
from natgrad.optim.optimizer import Parameters, Proposal, SecondOrderOptimizer
from natgrad.optim.report import OptimizerStatus
from natgrad.optim.trust_region_search import search_radius, unmeasured_step
from natgrad.solvers import Solution

PROBE = 0.1  # the share of a step at which the residuals' second derivative along it is measured


class LevenbergMarquardt(SecondOrderOptimizer):
    """Minimise ½‖r(θ)‖² by θ ← θ + s, where s minimises ½‖r + J s‖² + ½ λ‖s‖² over ‖s‖ <= Δ.

    ``step(closure)`` takes either of two closures:

    - one that returns the residuals r (m,), a tensor with its graph, and calls no backward; the
      loss, which ``step`` returns, is ½‖r‖². Complex residuals count as their real and imaginary
      parts;
    - the standard one, for ``LevenbergMarquardt(model)`` and a loss that is a sum or a mean of
      squared errors of the model's outputs, such as ``F.mse_loss(model(x), y)``.

    ``step()`` without a closure, for a model and mean squared errors, goes as far as radius and
    damping allow, and measures nothing.

    Parameters
    ----------
    params
        A model, or parameters, named parameters or groups, as torch.optim takes them.
    model
        The model, where ``params`` are groups and the closure returns a loss.
    jacobian
        ``() -> J`` (m, n) at the present parameters. Give it where a way quicker than min(m, n)
        backward passes is known, ``torch.func.vmap`` over samples for example.
    lr
        The factor on s, a setting of each group. Below 1 for noisy residuals.
    radius
        Δ > 0 of the first step; it follows the reduction ratio from there. None: the length of the
        Cauchy step, so that nothing depends on the scale of the residuals. ``math.inf``: λ alone
        bounds the step.
    damping
        λ >= 0, constant. Raise it where J is singular or its batch small.
    momentum
        μ >= 0: λ and Δ bound s − μ s_last in place of s; where no such step is accepted, it is made
        without. Above 0 for small batches.
    solver
        "dense" (the singular values of J), "sample_space" (the eigenvalues of J Jᵀ, in float64; of
        J itself where squares have lost some) or "cg" (Steihaug's, from products with J). None:
        "cg" if min(m, n) > 256 (4,000 with ``jacobian``), else "dense" for m >= n and
        "sample_space" for m < n; ``last_step.solver`` says which.
    accept_ratio
        The share of the predicted reduction that an accepted step achieves at least. Raise it to
        refuse steps of little use.
    max_attempts
        Candidates of a step at most; after a refused one the next, at a smaller radius, comes from
        the same decomposition. Lower it where the closure costs more than J.
    scaled
        Whether lengths are those of D s, D the largest norm that each column of J has had, so that
        rescaled parameters change nothing. Needs J itself ("dense" or "sample_space").
    acceleration
        Above 0, each step bends along the curve of the residuals by half its second-order term a,
        where ‖a‖ <= ``acceleration`` ‖s‖; its authors have 0.75. It takes one more call of the
        closure and no decomposition, and saves several steps of two in curved valleys, those of
        physics-informed networks for example. Needs J itself.
    rtol
        The relative residual at which "cg" ends. Lower it for more exact steps.
    max_iterations
        Iterations of "cg" at most; None: the solver's own limit.
    method
        The former name of ``solver``.

    Raises
    ------
    ValueError
        For settings out of range, residuals without a graph, a loss that is not of squared errors.
    RuntimeError
        From ``step``, if no batch of the model is known.

    Notes
    -----
    Where the solvers converge they give the same step. None lowers the damped model by less than
    half of the reduction by the Cauchy step inside the radius: where rounding, or a J beyond a
    solver, leaves less, the Cauchy step is taken.

    Source: Moré, "The Levenberg-Marquardt algorithm: implementation and theory", 1978; the momentum
    of Goldshlager, Abrahamsen & Lin, "A Kaczmarz-inspired approach to accelerate the optimization
    of neural network wavefunctions" (SPRING), 2024, equation 16, whose rule this is for
    ``radius=math.inf``; the acceleration of Transtrum & Sethna, "Improvements to the
    Levenberg-Marquardt algorithm for nonlinear least-squares minimization", 2012, section 3.

    Examples
    --------
    >>> x = torch.tensor([-1.2, 1.0], dtype=torch.float64, requires_grad=True)
    >>> optimizer = LevenbergMarquardt([x])
    >>> for _ in range(30):
    ...     loss = optimizer.step(lambda: torch.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]]))
    >>> x.tolist(), optimizer.last_step.status.name
    ([1.0, 1.0], 'CONVERGED')
    """

    whole = ("radius", "damping", "momentum")
    _closure_form = ClosureForm.RESIDUALS

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
        require_least({"acceleration": acceleration, "rtol": rtol}, 0, "acceleration", "rtol")
        require_least({"accept_ratio": accept_ratio}, -math.inf, "accept_ratio")
        require_counts(
            max_attempts=max_attempts, max_iterations=max_iterations, optional=("max_iterations",)
        )
        self._jacobian, self._solver = jacobian, solver
        self._accept_ratio, self._max_attempts = accept_ratio, max_attempts
        self._scaled, self._acceleration = scaled, acceleration
        self._rtol, self._max_iterations = rtol, max_iterations
        defaults = {"lr": lr, "radius": radius, "damping": damping, "momentum": momentum}
        super().__init__(params, defaults, model)

    def _vectors(self) -> tuple[str, ...]:
        momentum = any(float(group["momentum"]) for group in self.param_groups)
        return ("last_step",) * momentum + ("scale",) * self._scaled

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        require_least(group, 0, "damping", "momentum")
        if group["radius"] is not None:
            require_least(group, 0, "radius", exclusive=True)

    def _compute_step(self, start: Start) -> Proposal:
        damping, momentum = float(self._setting("damping")), float(self._setting("momentum"))
        radius, rates = self._setting("radius"), self._per_parameter("lr", start.parameters)
        last = self._remembered("last_step", start.parameters) if momentum else None
        linear = linearise(start, self._observed, self._jacobian)
        solver = self._solver or linear.cheapest
        if solver != "cg":
            linear.dense()  # before anything asks for products, which need second derivatives
        scale = self._scale(linear, solver, start) if self._scaled else None
        if radius is None:
            radius = cauchy_length(linear, start.gradient, start.theta, scale)
        step_from = partial(
            LeastSquaresStep,
            linear,
            solver,
            damping=damping,
            scale=scale,
            rtol=self._rtol,
            max_iterations=self._max_iterations,
        )
        priors = [None] if last is None else [momentum * last, None]
        if start.loss is None:
            found = unmeasured_step(start, step_from(prior=priors[0]), radius, rates)
        else:
            for prior in priors:
                solve = step_from(prior=prior)
                found = search_radius(
                    start,
                    solve,
                    radius,
                    rates,
                    linear.multiply,
                    norm=solve.norm,
                    accept_ratio=self._accept_ratio,
                    max_attempts=self._max_attempts,
                    decrease=solve.decrease,
                    bend=self._bend(start, linear, solver, solve) if self._acceleration else None,
                )
                if found.theta is not None:
                    break
            finite = found.report.status is not OptimizerStatus.NONFINITE_CURVATURE
            if math.isfinite(radius) and finite:
                self._set_for_all_groups("radius", found.radius)
        if momentum and found.theta is not None:
            self._remember("last_step", start.parameters, found.theta - start.theta)
        report = replace(found.report, products=linear.products, damping=damping, solver=solver)
        return Proposal(found.theta, report)

    def _scale(self, linear: Linearised, solver: Method, start: Start) -> Tensor:
        """Return D, the largest norm that each column of J has had (Moré 1978, equation 6.2)."""
        if solver == "cg":
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
        self, start: Start, linear: Linearised, solver: Method, solve: LeastSquaresStep
    ) -> Callable[[Solution[Tensor]], Tensor]:
        """The function from a step to the term that bends it along the curve of the residuals."""
        limit, objective = self._acceleration, start.objective
        if solver == "cg" or objective is None or objective.residuals is None:
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
