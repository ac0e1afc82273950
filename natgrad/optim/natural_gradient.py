"""The natural gradient under a bound on the KL divergence of a step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from natgrad.curvature import Fisher, LinearOperator
from natgrad.optim.curvature_source import Curvature, operator_of, require_one_source
from natgrad.optim.inner_products import inner_products
from natgrad.optim.likelihoods import Likelihood, likelihood_of
from natgrad.optim.report import StepReport, StepStatus
from natgrad.optim.second_order import (
    Outcome,
    Parameters,
    SecondOrderOptimizer,
    Start,
    require_least,
)
from natgrad.solvers import Solution, Status, cg
from natgrad.trust_region import (
    LineSearchResult,
    LineSearchStatus,
    StepSizeStatus,
    backtracking,
    step_size,
)

Solver = Callable[[LinearOperator, Tensor], Solution[Tensor]]
Search = Callable[..., LineSearchResult]


class NaturalGradient(SecondOrderOptimizer):
    """θ ← θ − α s with (K + λI) s = g, and α = min(lr, √(2δ / sᵀK s)), δ the ``max_kl``.

    Two forms:

    - ``NaturalGradient(model, likelihood="categorical")``: K is the Fisher matrix of the model on
      the batches behind the gradient, whose inputs a forward hook has seen. ``likelihood`` is
      "categorical" (logits), "bernoulli" (logits), "normal" (means, unit variance), a function from
      outputs to a distribution, or None for a model that returns one. For parameter groups give
      these and ``model=``. With ``chunk_size`` memory is independent of the batch.
    - ``NaturalGradient(parameters, curvature=f)``: K is ``f()``, built anew for every step, any
      operator (n, n) over all the parameters in their order.

    ``step()`` goes α s. ``step(closure)`` backtracks from there by ``search`` until the loss falls
    by a tenth of what its slope promises, or leaves the parameters as they are. ``lr`` caps α: 1 is
    a full Gauss-Newton step for losses −log p, ``math.inf`` always goes to the bound. ``solver`` is
    any (A, b) -> Solution, here conjugate gradients with ``rtol`` and ``max_iterations``.

    Invariant under affine changes of the model's coordinates where ``damping`` is 0 and the solver
    is exact. ``maximize`` ascends.

    Cost, beyond the gradient: one forward and one backward pass of set-up, one gradient a product
    (:class:`natgrad.Fisher`), one forward pass a candidate of the search. Raises ``ValueError`` for
    settings out of range, ``RuntimeError`` where no batch is known.

    Source: Amari, "Natural gradient works efficiently in learning", 1998; the step size of
    Schulman et al. 2015, appendix C, as a cap and not as the length (Ba, Grosse & Martens 2017,
    section 3.4), so that steps vanish with the gradient.

    >>> model, x = nn.Linear(2, 3), torch.eye(2)
    >>> optimizer = NaturalGradient(model, likelihood="categorical", max_kl=1e-2)
    >>> torch.nn.functional.cross_entropy(model(x), torch.tensor([0, 2])).backward()
    >>> optimizer.step()
    >>> optimizer.last_step.status.name, round(optimizer.last_step.kl, 4)
    ('ACCEPTED', 0.01)
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
        solver: Solver | None = None,
        search: Search = backtracking,
    ) -> None:
        require_one_source(params, model, curvature, "NaturalGradient(model, likelihood=...)")
        self._likelihood, self._curvature = likelihood_of(likelihood), curvature
        self._solver = solver or partial(cg, rtol=rtol, max_iterations=max_iterations)
        self._solver_name = "cg" if solver is None else getattr(solver, "__name__", "solver")
        self._search, self._chunk_size = search, chunk_size
        defaults = {"lr": lr, "max_kl": max_kl, "damping": damping, "maximize": maximize}
        super().__init__(params, defaults, model)

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        require_least(group, 0, "damping")
        require_least(group, 0, "max_kl", exclusive=True)

    def _fisher(
        self, forward: Callable[[Any], Any], data: Any, parameters: list[Tensor]
    ) -> LinearOperator:
        return Fisher(
            lambda x: self._likelihood(forward(x)), parameters, data=data,
            chunk_size=self._chunk_size,
        )  # fmt: skip

    def _find(self, start: Start) -> Outcome:
        damping, max_kl = float(self._setting("damping")), float(self._setting("max_kl"))
        K = operator_of(
            self._curvature, self._observed, self._fisher, self._parameters(), start.parameters
        )
        s = self._solver(K.damped(damping) if damping else K, start.gradient)
        rates = self._per_parameter("lr", start.parameters)
        d, longest = s.x, rates
        Kd = s.Ax - damping * s.x
        if rates.ndim:  # K D s, with D the rates, is no multiple of K s
            d, longest = rates * s.x, torch.ones_like(rates[0])
            Kd = K @ d
        slope, dKd = inner_products(start.gradient, d), inner_products(d, Kd)
        report = StepReport(
            StepStatus.ACCEPTED, iterations=s.iterations, products=K.products, damping=damping,
            solver=self._solver_name, solver_status=s.status,
        )  # fmt: skip
        if s.status is Status.NONFINITE or not bool(torch.isfinite(slope + dKd)):
            return Outcome(None, replace(report, status=StepStatus.NONFINITE_CURVATURE))
        bound, sized = step_size(dKd, max_kl)
        alpha = longest.double()
        if sized is StepSizeStatus.OK:  # where not: no curvature, or a bound beyond all numbers
            alpha = torch.minimum(alpha, torch.as_tensor(bound))
        if not bool((slope > 0) & torch.isfinite(alpha)):
            return Outcome(None, replace(report, status=StepStatus.NOT_DESCENT))
        theta, fraction, status, actual = self._searched(start, (alpha * d).to(d), alpha * slope)
        alpha = fraction * alpha
        report = replace(
            report, status=status, step_scale=float(alpha), kl=float(alpha.square() * dKd / 2),
            predicted_reduction=float(alpha * slope - alpha.square() * dKd / 2),
            actual_reduction=actual,
        )  # fmt: skip
        return Outcome(theta, report)

    def _searched(
        self, start: Start, step: Tensor, slope: Tensor
    ) -> tuple[Tensor | None, float, StepStatus, float]:
        """θ, the share of the step, and the measured reduction, where there is a closure."""
        if start.loss is None:
            return start.theta - step, 1.0, StepStatus.ACCEPTED, math.nan
        found = self._search(
            start.evaluate, start.theta, -step, start_objective=start.loss,
            expected_improvement=slope,
        )  # fmt: skip
        if found.accepted:
            return found.theta, found.fraction, StepStatus.ACCEPTED, found.improvement
        nonfinite = found.status is LineSearchStatus.NONFINITE
        status = StepStatus.NONFINITE_LOSS if nonfinite else StepStatus.NO_IMPROVEMENT
        return None, 0.0, status, math.nan
