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
from natgrad.optim.arguments import require_counts, require_least, require_one_source
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
    """Train by θ ← θ − α s, (K + λI) s = g, with α <= min(lr, √(2δ / sᵀK s)), δ the ``max_kl``.

    Two forms: ``NaturalGradient(model, likelihood="categorical")``, where K is the Fisher matrix of
    the model on the batches behind the gradient; and ``NaturalGradient(parameters, curvature=f)``
    with any operator K = ``f()``.

    ½ (αs)ᵀK (αs) = δ is a forecast. For a model the KL divergence E[KL(p_old ‖ p_new)] on the same
    batches is measured by a forward pass, and the step shortened until it is at most δ: that
    divergence is ``last_step.kl``.

    ``step()`` goes that far. ``step(closure)`` backtracks from there until the loss falls by a
    tenth of its slope's promise, or leaves the parameters as they are.

    Parameters
    ----------
    params
        A model, whose batches a forward hook sees, or parameters, named parameters or groups, as
        torch.optim takes them; then give ``curvature`` or ``model``.
    likelihood
        The distribution that the outputs mean: "categorical" (logits), "bernoulli" (logits),
        "normal" (means, unit variance), a function from outputs to a distribution, or None for a
        model that returns one.
    curvature
        ``() -> K``, called at every step: any operator (n, n) over all the parameters in their
        order. There is no model then, and the forecast is trusted.
    model
        The model, where ``params`` are parameters or groups.
    lr
        The cap on α, a setting of each group: 1 is a full Gauss-Newton step for losses −log p,
        ``math.inf`` always goes to the bound.
    max_kl
        δ > 0, in nats, per step. Lower it for smaller changes of the outputs.
    damping
        λ >= 0, in units of K. Raise it if K is singular or estimated from few samples.
    rtol
        The relative residual at which conjugate gradients end. Lower it for more exact directions.
    max_iterations
        Iterations of conjugate gradients at most; each costs about one gradient.
    chunk_size
        Samples that the model sees at a time; memory is independent of the batch then. None: all.
    maximize
        Whether to ascend.
    measure_kl
        Whether the KL divergence is measured. False trusts the forecast,
        ``last_step.predicted_kl``, and saves a forward pass a step.
    solver
        The solver of (K + λI) s = g, in place of ``natgrad.cg`` with ``rtol`` and
        ``max_iterations``: a :data:`natgrad.natural_step.Solver`.
    search
        The line search of ``step(closure)``, with the signature of :func:`natgrad.backtracking`.

    Raises
    ------
    ValueError
        For settings out of range, and from ``step`` for a gradient in parameters that the outputs
        do not depend on.
    RuntimeError
        From ``step``, if no batch is known.

    Notes
    -----
    Invariant under affine changes of the model's coordinates if ``damping`` is 0 and the solver is
    exact.

    Cost, beyond the gradient: one forward and one backward pass of set-up, one gradient a product
    (:class:`natgrad.Fisher`), a forward pass for each KL that is measured (one, where the forecast
    holds), one forward pass a candidate of the search.

    Source: Amari, "Natural gradient works efficiently in learning", 1998; the step size of
    Schulman et al. 2015, appendix C, as a cap and not as the length (Ba, Grosse & Martens 2017,
    section 3.4), so that steps vanish with the gradient.

    Examples
    --------
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
        require_least({"rtol": rtol}, 0, "rtol")
        require_counts(
            max_iterations=max_iterations, chunk_size=chunk_size, optional=("chunk_size",)
        )
        self._likelihood, self._curvature = likelihood_of(likelihood), curvature
        self._measure_kl = measure_kl
        self._solver = solver or partial(cg, rtol=rtol, max_iterations=max_iterations)
        self._solver_name = "cg" if solver is None else getattr(solver, "__name__", "solver")
        self._search, self._chunk_size = search, chunk_size
        defaults = {"lr": lr, "max_kl": max_kl, "damping": damping, "maximize": maximize}
        super().__init__(params, defaults, model, self._likelihood)
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
    """A step downhill, −``step``, and its outcome: ``theta`` (None if it was refused), the measured
    ``kl`` and ``improvement``. ``slope`` is gᵀstep."""

    step: Tensor
    slope: Tensor
    theta: Tensor | None = None
    kl: float = math.nan
    improvement: float = math.nan

    def taken_from(
        self, start: Start, max_kl: float, measured: MeasuredKL | None, search: Search
    ) -> tuple[OptimizerStatus, float]:
        """Shorten the step until the KL, if it is measured, is within its bound, and from there,
        if there is a closure, until the loss falls. Returns the status and the share taken."""
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
