"""The natural gradient under a bound on the KL divergence of a step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from natgrad.curvature import Fisher, LinearOperator
from natgrad.natural_step import Solver, natural_step
from natgrad.optim.arguments import require_least, require_one_source
from natgrad.optim.curvature_source import Curvature, operator_of
from natgrad.optim.likelihoods import Likelihood, likelihood_of
from natgrad.optim.measured_kl import MeasuredKL
from natgrad.optim.objective import Start
from natgrad.optim.optimizer import Parameters, Proposal, SecondOrderOptimizer
from natgrad.optim.report import OptimizerReport, OptimizerStatus
from natgrad.solvers import cg
from natgrad.trust_region import LineSearchResult, LineSearchStatus, StepSizeStatus, backtracking

Search = Callable[..., LineSearchResult]


_STATUS = {
    StepSizeStatus.OK: OptimizerStatus.ACCEPTED,
    StepSizeStatus.NONFINITE: OptimizerStatus.NONFINITE_CURVATURE,
    StepSizeStatus.NONPOSITIVE_CURVATURE: OptimizerStatus.NONPOSITIVE_CURVATURE,
    StepSizeStatus.NOT_DESCENT: OptimizerStatus.NOT_DESCENT,
}


class NaturalGradient(SecondOrderOptimizer):
    """θ ← θ − α s with (K + λI) s = g, and α <= min(lr, √(2δ / sᵀK s)), δ the ``max_kl``.

    Two forms:

    - ``NaturalGradient(model, likelihood="categorical")``: K is the Fisher matrix of the model on
      the batches behind the gradient, whose inputs a forward hook has seen. ``likelihood`` is
      "categorical" (logits), "bernoulli" (logits), "normal" (means, unit variance), a function from
      outputs to a distribution, or None for a model that returns one. For parameter groups give
      these and ``model=``. With ``chunk_size`` memory is independent of the batch.
    - ``NaturalGradient(parameters, curvature=f)``: K is ``f()``, built anew for every step, any
      operator (n, n) over all the parameters in their order.

    ½ (αs)ᵀK (αs) = δ is a forecast. For a model the KL divergence E[KL(p_old ‖ p_new)] on the same
    batches is measured by a forward pass, and the step shortened until it is at most δ: what
    ``last_step.kl`` says. ``measure_kl=False`` trusts the forecast, ``last_step.predicted_kl``, as
    does the form with ``curvature``, where there is no model to measure.

    ``step()`` goes that far. ``step(closure)`` backtracks from there by ``search`` until the loss
    falls by a tenth of what its slope promises, or leaves the parameters as they are. ``lr`` caps
    α: 1 is a full Gauss-Newton step for losses −log p, ``math.inf`` always goes to the bound.
    ``solver`` is any (A, b, damping=λ) -> Solution of (A + λI) x = b with A x as its ``Ax``, or any
    (A, b) -> Solution, which is handed A + λI and costs one product more; here conjugate gradients
    with ``rtol`` and ``max_iterations``.

    Invariant under affine changes of the model's coordinates where ``damping`` is 0 and the solver
    is exact. ``maximize`` ascends.

    Cost, beyond the gradient: one forward and one backward pass of set-up, one gradient a product
    (:class:`natgrad.Fisher`), a forward pass for each KL that is measured (one, where the forecast
    holds), one forward pass a candidate of the search. Raises ``ValueError`` for settings out of
    range, and for a gradient in parameters that the outputs do not depend on; ``RuntimeError``
    where no batch is known.

    Source: Amari, "Natural gradient works efficiently in learning", 1998; the step size of
    Schulman et al. 2015, appendix C, as a cap and not as the length (Ba, Grosse & Martens 2017,
    section 3.4), so that steps vanish with the gradient.

    >>> model, x = nn.Linear(2, 3), torch.eye(2)
    >>> optimizer = NaturalGradient(model, likelihood="categorical", max_kl=1e-2)
    >>> torch.nn.functional.cross_entropy(model(x), torch.tensor([0, 2])).backward()
    >>> optimizer.step()
    >>> optimizer.last_step.status.name, 0.005 < optimizer.last_step.kl <= 0.01
    ('ACCEPTED', True)
    """

    whole = ("max_kl", "damping", "maximize")

    def __init__(
        self,
        params: nn.Module | Parameters,
        *,
        likelihood: str | Likelihood | None = None,
        curvature: Curvature | None = None,
        model: nn.Module | None = None,
        lr: float = 1.0,
        max_kl: float = 1e-2,
        damping: float = 1e-3,
        rtol: float = 1e-2,
        max_iterations: int = 50,
        chunk_size: int | None = None,
        maximize: bool = False,
        measure_kl: bool = True,
        solver: Solver | None = None,
        search: Search = backtracking,
    ) -> None:
        require_one_source(params, model, curvature, "NaturalGradient(model, likelihood=...)")
        self._likelihood, self._curvature = likelihood_of(likelihood), curvature
        self._measure_kl = measure_kl
        self._solver = solver or partial(cg, rtol=rtol, max_iterations=max_iterations)
        self._solver_name = "cg" if solver is None else getattr(solver, "__name__", "solver")
        self._search, self._chunk_size = search, chunk_size
        defaults = {"lr": lr, "max_kl": max_kl, "damping": damping, "maximize": maximize}
        super().__init__(params, defaults, model)
        if self._observed is not None:
            self._observed.keeps_outputs = measure_kl

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        require_least(group, 0, "damping")
        require_least(group, 0, "max_kl", exclusive=True)

    def _fisher(
        self, forward: Callable[[Any], Any], data: Any, parameters: list[Tensor]
    ) -> LinearOperator:
        return Fisher(
            lambda x: self._likelihood(forward(x)),
            parameters,
            data=data,
            chunk_size=self._chunk_size,
        )

    def _compute_step(self, start: Start) -> Proposal:
        damping, max_kl = float(self._setting("damping")), float(self._setting("max_kl"))
        K = operator_of(
            self._curvature, self._observed, self._fisher, self._parameters(), start.parameters
        )
        found = natural_step(
            K,
            start.gradient,
            damping=damping,
            bound=max_kl,
            longest=self._per_parameter("lr", start.parameters),
            solver=self._solver,
        )
        start.require_reached(K, self._observed)
        report = OptimizerReport(
            _STATUS[found.status],
            iterations=found.solution.iterations,
            products=K.products,
            damping=damping,
            solver=self._solver_name,
            solver_status=found.solution.status,
        )
        if found.status is not StepSizeStatus.OK:
            return Proposal(None, report)
        step = _Step(found.d, found.slope)
        status, fraction = step.taken_from(start, max_kl, self._measured(start), self._search)
        half_curvature = fraction**2 * found.curvature / 2
        report = replace(
            report,
            status=status,
            step_scale=float(fraction * found.scale),
            kl=step.kl,
            predicted_kl=float(half_curvature),
            predicted_reduction=float(fraction * found.slope - half_curvature),
            actual_reduction=step.improvement,
        )
        return Proposal(step.theta, report)

    def _measured(self, start: Start) -> MeasuredKL | None:
        if self._curvature is not None or not self._measure_kl:
            return None
        assert self._observed is not None
        return MeasuredKL(self._observed, self._likelihood, start, self._chunk_size)


@dataclass
class _Step:
    """A step downhill, −``step``, and what became of it: ``theta`` (None where it was refused), the
    measured ``kl`` and ``improvement``. ``slope`` is gᵀstep."""

    step: Tensor
    slope: Tensor
    theta: Tensor | None = None
    kl: float = math.nan
    improvement: float = math.nan

    def taken_from(
        self, start: Start, max_kl: float, measured: MeasuredKL | None, search: Search
    ) -> tuple[OptimizerStatus, float]:
        """Go back until the KL, where it is measured, is within its bound, and from there, where
        there is a closure, until the loss falls. The status, and the share of the step."""
        within = 1.0
        if measured is not None:
            within, self.kl = measured.shortened(start.theta, -self.step, max_kl)
            if not within:
                return OptimizerStatus.KL_EXCEEDED, 0.0
            self.step, self.slope = within * self.step, within * self.slope
        if start.loss is None:
            self.theta = start.theta - self.step
            return OptimizerStatus.ACCEPTED, within
        known = start.theta - self.step

        def evaluate(theta: Tensor) -> tuple[Tensor | float, float]:
            loss, _ = start.evaluate(theta)
            if measured is None:
                return loss, 0.0
            return loss, self.kl if torch.equal(theta, known) else measured(theta)

        found = search(
            evaluate,
            start.theta,
            -self.step,
            start_objective=start.loss,
            expected_improvement=self.slope,
            bound=0.0 if measured is None else max_kl,
        )
        if found.accepted:
            self.theta, self.improvement = found.theta, found.improvement
            self.kl = math.nan if measured is None else found.constraint
            return OptimizerStatus.ACCEPTED, within * found.fraction
        nonfinite = found.status is LineSearchStatus.NONFINITE
        return OptimizerStatus.NONFINITE_LOSS if nonfinite else OptimizerStatus.NO_IMPROVEMENT, 0.0
