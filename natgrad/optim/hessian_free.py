"""Hessian-free optimization: Gauss-Newton steps by conjugate gradients, with adaptive damping."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from natgrad.curvature import GaussNewton, LinearOperator
from natgrad.optim.arguments import require_counts, require_least, require_one_source
from natgrad.optim.curvature_source import Curvature, operator_of
from natgrad.optim.likelihoods import Metric, metric_of
from natgrad.optim.objective import Start
from natgrad.optim.optimizer import Parameters, Proposal, SecondOrderOptimizer
from natgrad.optim.report import OptimizerReport, OptimizerStatus
from natgrad.solvers import Iterate, Solution, Status, cg, relative_progress
from natgrad.solvers.linear_map import LinearMap
from natgrad.solvers.scaling import inner_products
from natgrad.trust_region import backtracking, reduction_ratio, update_damping

Preconditioner = Callable[[LinearOperator], LinearMap]


class HessianFree(SecondOrderOptimizer):
    """Train by θ ← θ − s, (G + λI) s ≈ g by truncated conjugate gradients; λ follows the ratio ρ.

    Two forms: ``HessianFree(model, loss="cross_entropy")`` with the Gauss-Newton matrix G of the
    model on the batches behind the gradient; and ``HessianFree(parameters, curvature=f)`` with any
    operator G = ``f()``. Both take parameter groups.

    ``step(closure)`` is Martens' whole method: CG starts from ``warm_start`` times the last
    solution and ends by relative progress; of its iterates, kept at a ratio of 1.3, the search goes
    back from the last while the loss falls; from there it backtracks until the loss is below the
    start; λ falls by a third after ρ > ¾ and rises by half after ρ < ¼. Without a closure the loss
    is not measured: the whole of s is taken, times ``lr``, and λ stays.

    Parameters
    ----------
    params
        A model, whose batches a forward hook sees, or parameters, named parameters or groups, as
        torch.optim takes them; then give ``curvature`` or ``model``.
    loss
        The loss of the outputs, whose Hessian G contains: "cross_entropy", "binary_cross_entropy"
        (with logits), "squared_error" or a function from outputs to an
        :class:`natgrad.curvature.OutputMetric`.
    curvature
        ``() -> G``, called at every step: any operator (n, n) over all the parameters in their
        order.
    model
        The model, where ``params`` are parameters or groups.
    lr
        The factor on s, a setting of each group. Below 1 for steps that no closure measures.
    damping
        λ >= 0 of the first step, in units of G. Raise it if the first steps are refused.
    max_iterations
        Iterations of conjugate gradients at most; each costs about one gradient.
    rtol
        The relative residual at which conjugate gradients end at the latest.
    progress
        The relative progress of the quadratic model, per iteration, below which conjugate gradients
        end. Lower it for longer solves.
    warm_start
        The factor >= 0 on the last solution, from which the next solve starts. 0: from zero.
    chunk_size
        Samples that the model sees at a time; memory is independent of the batch then. None: all.
    maximize
        Whether to ascend.
    preconditioner
        ``(G + λI) -> M``, called at every step; M is a preconditioner as :func:`natgrad.cg` takes
        it. Give one if the solves take many iterations.

    Raises
    ------
    ValueError
        For settings out of range.
    RuntimeError
        From ``step``, if no batch is known.

    Notes
    -----
    Cost, beyond the gradient: one forward and one backward pass of set-up, about one gradient an
    iteration, a forward pass a candidate; memory of the kept iterates, ln k / ln 1.3 vectors.

    Source: Martens, "Deep learning via Hessian-free optimization", 2010, sections 4.1 to 4.6. How
    it differs: ρ is that of the candidate chosen, with the model at that candidate; CG's own claims
    are verified, so that a solve may also end because it converged.

    Examples
    --------
    >>> model, x, y = nn.Linear(2, 1), torch.eye(2), torch.ones(2, 1)
    >>> optimizer = HessianFree(model, loss="squared_error", damping=1e-6)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = torch.nn.functional.mse_loss(model(x), y)
    ...     loss.backward()
    ...     return loss
    >>> _ = optimizer.step(closure)
    >>> bool(closure() < 1e-8)          # a quadratic takes one step
    True
    """

    whole = ("damping", "warm_start", "maximize")

    def __init__(
        self,
        params: nn.Module | Parameters,
        *,
        loss: str | Metric = "cross_entropy",
        curvature: Curvature | None = None,
        model: nn.Module | None = None,
        lr: float = 1.0,
        damping: float = 1e-1,
        max_iterations: int = 250,
        rtol: float = 1e-6,
        progress: float = 5e-4,
        warm_start: float = 0.95,
        chunk_size: int | None = None,
        maximize: bool = False,
        preconditioner: Preconditioner | None = None,
    ) -> None:
        require_one_source(params, model, curvature, "HessianFree(model, loss=...)")
        require_least({"rtol": rtol, "progress": progress}, 0, "rtol", "progress")
        require_counts(
            max_iterations=max_iterations, chunk_size=chunk_size, optional=("chunk_size",)
        )
        self._metric, self._curvature = metric_of(loss), curvature
        self._max_iterations, self._rtol = max_iterations, rtol
        self._progress = progress
        self._chunk_size, self._preconditioner = chunk_size, preconditioner
        defaults = {
            "lr": lr,
            "damping": damping,
            "warm_start": warm_start,
            "maximize": maximize,
        }
        super().__init__(params, defaults, model, self._metric)

    def _vectors(self) -> tuple[str, ...]:
        return ("solution",)

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        require_least(group, 0, "damping", "warm_start")

    def _gauss_newton(
        self, forward: Callable[[Any], Any], data: Any, parameters: list[Tensor]
    ) -> LinearOperator:
        return GaussNewton(
            lambda x: self._metric(forward(x)), parameters, data=data, chunk_size=self._chunk_size
        )

    def _compute_step(self, start: Start) -> Proposal:
        damping = float(self._setting("damping"))
        G = operator_of(
            self._curvature,
            self._observed,
            self._gauss_newton,
            self._parameters(),
            start.parameters,
        )
        last = self._remembered("solution", start.parameters)
        precondition = self._preconditioner
        s = cg(
            G,
            start.gradient,
            damping=damping,
            x0=None if last is None else float(self._setting("warm_start")) * last,
            preconditioner=None if precondition is None else precondition(G.damped(damping)),
            rtol=self._rtol,
            max_iterations=self._max_iterations,
            stop=relative_progress(self._progress),
            iterate_growth=None if start.loss is None else 1.3,
        )
        start.require_reached(G, self._observed)
        report = OptimizerReport(
            OptimizerStatus.ACCEPTED,
            iterations=s.iterations,
            products=G.products,
            damping=damping,
            solver="cg",
            solver_status=s.status,
        )
        if s.status is Status.NONFINITE:
            return Proposal(None, replace(report, status=OptimizerStatus.NONFINITE_CURVATURE))
        self._remember("solution", start.parameters, s.x)
        rates = self._per_parameter("lr", start.parameters)
        chosen, loss = Iterate(s.x, inner_products(s.x, s.Ax)), None
        if start.loss is not None:
            chosen, loss = self._best_iterate(start, s, rates)
        d = rates * chosen.x
        # With rates D that differ, G D x is no multiple of G x.
        dGd = inner_products(d, G @ d) if rates.ndim else rates.double().square() * chosen.xAx
        slope = inner_products(start.gradient, d)
        report = replace(
            report,
            products=G.products,
            predicted_kl=float(dGd / 2),
            predicted_reduction=float(slope - dGd / 2),
            step_scale=1.0,
        )
        if not bool(torch.isfinite(slope - dGd)):
            status = OptimizerStatus.NONFINITE_CURVATURE
            return Proposal(None, replace(report, status=status, step_scale=0.0))
        if not bool(d.any()):  # lr is 0
            status = OptimizerStatus.NO_IMPROVEMENT
            return Proposal(None, replace(report, status=status, step_scale=0.0))
        if not bool(slope > 0):
            self._adapt(damping, -math.inf, d, slope)
            return Proposal(
                None, replace(report, status=OptimizerStatus.NOT_DESCENT, step_scale=0.0)
            )
        if loss is None:
            return Proposal(start.theta - d, report)
        return self._searched(start, report, d, slope, loss)

    def _best_iterate(
        self, start: Start, s: Solution[Tensor], rates: Tensor
    ) -> tuple[Iterate[Tensor], Tensor]:
        """The iterate to go to, and the loss there: back from the last while the loss falls."""
        last = Iterate(s.x, inner_products(s.x, s.Ax))
        chosen, best = last, start.evaluate(start.theta - rates * s.x)[0]
        for iterate in reversed(s.iterates):
            if torch.equal(iterate.x, s.x):
                continue
            loss = start.evaluate(start.theta - rates * iterate.x)[0]
            if bool(torch.isfinite(best)) and not bool(loss < best):
                break
            chosen, best = iterate, loss
        return chosen, best

    def _searched(
        self, start: Start, report: OptimizerReport, d: Tensor, slope: Tensor, loss: Tensor
    ) -> Proposal:
        assert start.loss is not None
        eps = torch.finfo(d.dtype).eps
        ratio = reduction_ratio(
            float(start.loss), float(loss), report.predicted_reduction, epsilon=eps
        )
        self._adapt(report.damping, ratio, d, slope)
        first = True

        def evaluate(theta: Tensor) -> tuple[Tensor, float]:
            nonlocal first
            if first:  # the whole of d, which is known
                first = False
                return loss, 0.0
            return start.evaluate(theta)

        found = backtracking(
            evaluate,
            start.theta,
            -d,
            start_objective=start.loss,
            expected_improvement=slope,
            accept_ratio=1e-2,
            shrink=0.8,
            max_backtracks=20,
        )
        if not found.accepted:
            finite = math.isfinite(found.objective)
            status = OptimizerStatus.NO_IMPROVEMENT if finite else OptimizerStatus.NONFINITE_LOSS
            return Proposal(None, replace(report, status=status, step_scale=0.0))
        kept = found.fraction
        half_curvature = kept**2 * report.predicted_kl
        report = replace(
            report,
            step_scale=kept,
            predicted_kl=half_curvature,
            actual_reduction=found.improvement,
            predicted_reduction=kept * float(slope) - half_curvature,
        )
        return Proposal(found.theta, report)

    def _adapt(self, damping: float, ratio: float, d: Tensor, slope: Tensor) -> None:
        """Set the next λ, not below the curvature's rounding, from where it could not rise."""
        curvature = float(slope.abs() / inner_products(d, d))
        minimum = torch.finfo(d.dtype).eps * curvature if math.isfinite(curvature) else 0.0
        self._set_for_all_groups("damping", max(update_damping(damping, ratio), minimum))
