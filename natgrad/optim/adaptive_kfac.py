"""K-FAC that finds its own step length, momentum and damping, from exact Fisher products."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from natgrad.curvature import Fisher, Kronecker, LinearOperator, Sharing
from natgrad.optim.arguments import require_counts, require_least
from natgrad.optim.kronecker_optimizer import KroneckerOptimizer, mixed_seed
from natgrad.optim.likelihoods import Likelihood
from natgrad.optim.objective import Start
from natgrad.optim.optimizer import Parameters, Proposal
from natgrad.optim.report import OptimizerReport, OptimizerStatus
from natgrad.solvers.scaling import inner_products
from natgrad.trust_region import reduction_ratio, update_damping


class AdaptiveKFAC(KroneckerOptimizer):
    """Train by θ ← θ + lr d, d = α Δ + μ d₋, with α and μ found at each step.

    Δ = −(K + λI)⁻¹ g is K-FAC's direction and d₋ the last d; (α, μ) minimise gᵀd + ½ dᵀ(F + λI) d.
    K are Kronecker factors as in :class:`natgrad.optim.KFAC`, F the exact Fisher matrix, whose
    products with Δ and d₋ give the two coefficients: there is no learning rate to tune. For losses
    −log p of the ``likelihood``: another scale of the loss gives another step.

    ``step(closure)`` measures the loss after the step, and takes back one that raised it; every
    ``adapt_every`` steps, and after one taken back, λ follows ρ as in
    :func:`natgrad.update_damping`. Without a closure λ stays and nothing measures a step: give it a
    λ of 1e-2 and more.

    Parameters
    ----------
    params
        A model, or parameters, named parameters or groups, as torch.optim takes them.
    likelihood
        The distribution that the outputs mean, as in :class:`natgrad.optim.NaturalGradient`.
    model
        The model, required where ``params`` are parameters or groups.
    lr
        The factor on d, a setting of each group. Leave it at 1 except for fine-tuning of groups.
    damping
        λ >= 0 of the first step, in units of the Fisher matrix. Lower it if the first steps with a
        closure are too short.
    factor
        The factor > 1 by which λ changes. Nearer to 1 for a noisy ρ.
    adapt_every
        Steps between two changes of λ.
    minimum_damping
        The smallest λ >= 0 that adaptation reaches. Raise it for small batches.
    fraction
        The share of each batch, in (0, 1], on which K and F are taken. Lower it for large batches
        whose curvature costs too much.
    refresh_every
        Steps between two computations of the factors. Lower it if the curvature changes fast.
    decay
        The share of the older factors in the moving average at each refresh, in [0, 1); the first
        refreshes count equally. Raise it for noisy batches. 0.6 at every
        tenth step forgets as fast as the source's 0.95 at each.
    samples
        Labels a batch element that are drawn from the model for the output factors. None: these
        factors exactly, from one backward pass a class. Raise it for factors with less noise.
    sharing
        How positions of one sample (pixels, time steps) enter the factors, EXPAND or REDUCE: see
        :class:`natgrad.Kronecker`. REDUCE where a layer's outputs are averaged over positions.
    corrected
        Whether second moments in the factors' eigenbasis are exact (E-KFAC), for a more accurate K
        at eigendecompositions in place of inversions.
    seed
        The seed of the optimizer's own generators, which draw labels and fractions.
    maximize
        Whether to ascend.

    Raises
    ------
    ValueError
        For settings out of range.

    Notes
    -----
    Cost, beyond the gradient: on the fraction, a forward and a backward pass of set-up and two
    products, 4 gradients in all; two products with the inverse factors, which a new λ computes
    anew; a forward pass of the closure; a refresh as in ``KFAC``.

    Source: Martens & Grosse, "Optimizing neural networks with Kronecker-factored approximate
    curvature", 2015, sections 6.4, 6.5 and 7. How it differs: λ alone damps, K and F alike; λ is
    not bounded by one of its own for the factors; steps that raise the loss are refused.

    Examples
    --------
    >>> model, x, y = nn.Linear(2, 3), torch.eye(2), torch.tensor([0, 2])
    >>> optimizer = AdaptiveKFAC(model, likelihood="categorical", damping=1e-2)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = torch.nn.functional.cross_entropy(model(x), y)
    ...     loss.backward()
    ...     return loss
    >>> for _ in range(20):
    ...     _ = optimizer.step(closure)
    >>> bool(closure() < 1e-2)
    True
    """

    whole = ("damping", "minimum_damping", "maximize")

    def __init__(
        self,
        params: nn.Module | Parameters,
        *,
        likelihood: str | Likelihood | None = None,
        model: nn.Module | None = None,
        lr: float = 1.0,
        damping: float = 1.0,
        factor: float = 1.3,
        adapt_every: int = 5,
        minimum_damping: float = 1e-4,
        fraction: float = 1.0,
        refresh_every: int = 10,
        decay: float = 0.6,
        samples: int | None = 1,
        sharing: Sharing = Sharing.EXPAND,
        corrected: bool = False,
        seed: int = 0,
        maximize: bool = False,
    ) -> None:
        require_counts(adapt_every=adapt_every)
        require_least({"factor": factor}, 1, "factor", exclusive=True)
        self._adapt_every, self._factor = adapt_every, factor
        self._fraction, self._seed = fraction, seed
        defaults = {
            "lr": lr,
            "damping": damping,
            "minimum_damping": minimum_damping,
            "maximize": maximize,
        }
        super().__init__(
            params,
            defaults,
            model,
            likelihood=likelihood,
            refresh_every=refresh_every,
            decay=decay,
            samples=samples,
            sharing=sharing,
            corrected=corrected,
            seed=seed,
            fraction=fraction,
        )

    def _vectors(self) -> tuple[str, ...]:
        return ("last_step",)

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        require_least(group, 0, "damping", "minimum_damping")

    def _fisher(
        self, forward: Callable[[Any], Any], data: Any, parameters: list[Tensor]
    ) -> LinearOperator:
        return Fisher(lambda x: self._likelihood(forward(x)), parameters, data=data)

    def _compute_step(self, start: Start) -> Proposal:
        damping = float(self._setting("damping"))
        report = OptimizerReport(OptimizerStatus.ACCEPTED, damping=damping, solver="kronecker")
        K = self._factors_at(start.parameters)
        if K is None:
            return Proposal(None, replace(report, status=OptimizerStatus.NONFINITE_CURVATURE))
        steps = self._counters["steps"] = self._counters.get("steps", 0) + 1
        F = self._observed.curvature(
            lambda forward, data: self._fisher(forward, data, start.parameters),
            self._fraction,
            torch.Generator().manual_seed(mixed_seed(self._seed, steps)),
        )
        d, Fd = self._combined(start, K, F, damping)
        start.require_reached(F, self._observed)
        rates = self._per_parameter("lr", start.parameters)
        d, Fd = rates * d, rates * Fd
        slope, dFd = inner_products(start.gradient, d), inner_products(d, Fd)
        report = replace(
            report,
            products=F.products,
            predicted_kl=float(dFd / 2),
            step_scale=1.0,
            predicted_reduction=float(-slope - dFd / 2),
        )
        if not math.isfinite(report.predicted_reduction):
            status = OptimizerStatus.NONFINITE_CURVATURE
            return Proposal(None, replace(report, status=status, step_scale=0.0))
        theta = start.theta + d
        if start.loss is not None:
            report = self._judged(start, theta, report)
        if report.status is not OptimizerStatus.ACCEPTED:
            return Proposal(None, replace(report, step_scale=0.0))
        self._remember("last_step", start.parameters, d)
        return Proposal(theta, report)

    def _combined(
        self, start: Start, K: Kronecker, F: LinearOperator, damping: float
    ) -> tuple[Tensor, Tensor]:
        """d = α Δ + μ d₋ and F d, (α, μ) from the 2 x 2 system of the model's minimum."""
        g = start.gradient
        directions = [-K.solve(g, damping=damping, split=self._factors.split)]
        last = self._remembered("last_step", start.parameters)
        if last is not None and bool(last.any()):
            directions.append(last)
        V, FV = torch.stack(directions), torch.stack([F @ v for v in directions])
        A = inner_products(V, FV) + damping * inner_products(V, V)
        b = -inner_products(V, g)
        # Least squares of the system with a unit diagonal: Δ and d₋ may be parallel, to rounding.
        unit = torch.where(A.diagonal() > 0, A.diagonal().rsqrt(), 0.0)
        scaled = unit.unsqueeze(1) * A * unit
        coefficients = torch.full_like(b, math.nan)
        if bool(torch.isfinite(scaled).all()):
            values, vectors = torch.linalg.eigh((scaled + scaled.mT) / 2)
            kept = values > 1e-6 * values.amax()
            y = torch.where(kept, (vectors.mT @ (unit * b)) / values, 0.0)
            coefficients = unit * (vectors @ y)
        return coefficients.to(g) @ V, coefficients.to(g) @ FV

    def _judged(self, start: Start, theta: Tensor, report: OptimizerReport) -> OptimizerReport:
        """The report with the closure's loss at θ; sets λ for the next step."""
        assert start.loss is not None
        loss = float(start.evaluate(theta)[0])
        before, eps = float(start.loss), torch.finfo(theta.dtype).eps
        ratio = reduction_ratio(before, loss, report.predicted_reduction, epsilon=eps)
        status = report.status
        if not math.isfinite(loss):
            status = OptimizerStatus.NONFINITE_LOSS
        elif not ratio > 0:
            status = OptimizerStatus.NO_IMPROVEMENT
        due = self._counters["steps"] % self._adapt_every == 0
        if due or status is not OptimizerStatus.ACCEPTED:
            minimum = float(self._setting("minimum_damping"))
            damping = max(report.damping, minimum)
            damping = update_damping(damping, ratio, factor=self._factor, minimum=minimum)
            self._set_for_all_groups("damping", damping)
        return replace(report, status=status, actual_reduction=before - loss)
