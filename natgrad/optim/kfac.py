"""K-FAC: layers' natural gradients from Kronecker factors, refreshed every few steps."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from natgrad import flat
from natgrad.curvature import Sharing
from natgrad.optim.arguments import require_least
from natgrad.optim.kronecker_optimizer import KroneckerOptimizer
from natgrad.optim.likelihoods import Likelihood
from natgrad.optim.measured_kl import MeasuredKL
from natgrad.optim.objective import Start
from natgrad.optim.optimizer import Parameters, Proposal
from natgrad.optim.report import OptimizerReport, OptimizerStatus
from natgrad.solvers.scaling import inner_products


class KFAC(KroneckerOptimizer):
    """Train by θ ← (1 − lr w) θ − lr m, m ← ν (μ m + s), (K + λI) s = g, K ≈ the Fisher matrix.

    ν <= min(1, √(2δ / (lr² mᵀK m))) bounds the KL divergence of the whole step, momentum and weight
    decay included, by δ: the square root by the forecast of K, a smaller ν by a forward pass that
    measures E[KL(p_old ‖ p_new)] on the batch. K is :class:`natgrad.Kronecker` on the batch behind
    the gradient. Plain ``loss.backward()`` and ``optimizer.step()``; a closure is called once, as
    Adam calls it.

    Parameters
    ----------
    params
        A model, or parameters, named parameters or groups, as torch.optim takes them.
    likelihood
        The distribution that the outputs mean, as in :class:`natgrad.optim.NaturalGradient`.
    model
        The model, required where ``params`` are parameters or groups.
    lr
        The learning rate, a setting of each group. Larger is possible than for SGD: ``max_kl``
        shortens a step that is too long.
    damping
        λ >= 0, in units of the Fisher matrix. Raise it for few samples or unstable steps.
    max_kl
        δ > 0, in nats, per step. Lower it for smaller changes of the outputs. None: no bound.
    momentum
        μ >= 0, a setting of each group. Lower it for few, long steps.
    weight_decay
        w >= 0, decoupled from the gradient, a setting of each group; weaker in steps whose bound
        leaves no room for it.
    refresh_every
        Steps between two computations of the factors. Lower it if the curvature changes fast.
    decay
        The share of the older factors in the moving average at each refresh, in [0, 1); the first
        refreshes count equally. Raise it for noisy batches.
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
        The seed of the optimizer's own generators, which draw the labels.
    measure_kl
        Whether the KL divergence is measured (``last_step.kl``). False trusts the forecast,
        ``last_step.predicted_kl``, and saves a forward pass a step.
    maximize
        Whether to ascend.

    Raises
    ------
    ValueError
        For settings out of range, layers of an unknown kind (:class:`natgrad.Kronecker`), factors
        singular for want of damping.
    RuntimeError
        From ``step``, if a refresh is due and no batch is known.

    Notes
    -----
    Cost: a step, two products with inverse factors a layer, and a forward pass for each KL that is
    measured, mostly one; a refresh, one forward pass, some 3 backward passes and two inversions a
    layer, as for a new damping.

    Source: Martens & Grosse 2015; George et al. 2018 (E-KFAC); the bound after Ba, Grosse &
    Martens 2017, section 3.4, who leave momentum out of it; weight decay after Zhang, Wang, Xu &
    Grosse, "Three mechanisms of weight decay regularization", 2019. Different from the first:
    learning rate and momentum are given, not found; :class:`natgrad.optim.AdaptiveKFAC` finds them.

    Examples
    --------
    >>> model, x = nn.Linear(2, 3), torch.eye(2)
    >>> optimizer = KFAC(model, likelihood="categorical", lr=0.1)
    >>> torch.nn.functional.cross_entropy(model(x), torch.tensor([0, 2])).backward()
    >>> optimizer.step()
    >>> optimizer.last_step.status.name
    'ACCEPTED'
    """

    whole = ("max_kl", "damping", "maximize")
    _searches = False

    def __init__(
        self,
        params: nn.Module | Parameters,
        *,
        likelihood: str | Likelihood | None = None,
        model: nn.Module | None = None,
        lr: float = 1e-2,
        damping: float = 1e-2,
        max_kl: float | None = 1e-2,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        refresh_every: int = 10,
        decay: float = 0.95,
        samples: int | None = 1,
        sharing: Sharing = Sharing.EXPAND,
        corrected: bool = False,
        seed: int = 0,
        measure_kl: bool = True,
        maximize: bool = False,
    ) -> None:
        self._measure_kl = measure_kl
        defaults = {
            "lr": lr,
            "damping": damping,
            "max_kl": max_kl,
            "momentum": momentum,
            "weight_decay": weight_decay,
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
        )
        self._observed.keeps_outputs = max_kl is not None and measure_kl

    def _vectors(self) -> tuple[str, ...]:
        momentum = any(float(group["momentum"]) for group in self.param_groups)
        return ("momentum_buffer",) if momentum else ()

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        require_least(group, 0, "damping", "momentum", "weight_decay")
        if group["max_kl"] is not None:
            require_least(group, 0, "max_kl", exclusive=True)

    def _compute_step(self, start: Start) -> Proposal:
        damping, max_kl = float(self._setting("damping")), self._setting("max_kl")
        trained = [parameter for parameter in self._parameters() if parameter.requires_grad]
        momentum = self._per_parameter("momentum", trained)
        before = self._remembered("momentum_buffer", trained)
        report = OptimizerReport(OptimizerStatus.ACCEPTED, damping=damping, solver="kronecker")
        K = self._factors_at(trained)
        if K is None:
            return Proposal(None, replace(report, status=OptimizerStatus.NONFINITE_CURVATURE))
        start.require_reached(K, self._observed)
        # Parameters without a gradient take no part, but have their rows in K.
        active = set(start.parameters)
        pieces = iter(flat.unflatten(start.gradient, start.parameters))
        g = flat.flatten(next(pieces) if p in active else torch.zeros_like(p) for p in trained)
        kept = torch.cat([torch.full((flat.size(p),), p in active) for p in trained]).to(g.device)
        s = K.solve(g, damping=damping, split=self._factors.split)
        move = s if before is None else s + momentum * before
        move = torch.where(kept, move, 0.0)
        d = self._per_parameter("lr", trained) * move
        predicted = float(inner_products(d, K @ d) / 2)
        if not math.isfinite(predicted):
            return Proposal(None, replace(report, status=OptimizerStatus.NONFINITE_CURVATURE))
        nu = 1.0 if max_kl is None or predicted <= max_kl else math.sqrt(max_kl / predicted)
        rates, decays = (
            self._per_parameter(name, start.parameters) for name in ("lr", "weight_decay")
        )
        step, pull = -nu * d[kept], -rates * decays * start.theta
        if not bool(torch.isfinite(start.theta + step + pull).all()):
            return Proposal(None, replace(report, status=OptimizerStatus.NONFINITE_CURVATURE))
        self._counters["steps"] = self._counters.get("steps", 0) + 1
        kl = math.nan
        if max_kl is not None and self._measure_kl:
            measured = MeasuredKL(self._observed, self._likelihood, start)
            fraction, kl = measured.shortened(start.theta, step, max_kl)
            if not fraction:
                return Proposal(None, replace(report, status=OptimizerStatus.KL_EXCEEDED, kl=kl))
            step, nu = fraction * step, fraction * nu
            # Weight decay gets the rest of the bound: it must not shorten another group's step.
            if bool(pull.any()):
                decayed = measured.shortened(start.theta + step, pull, max_kl)
                pull, kl = decayed.fraction * pull, decayed.kl if decayed.fraction else kl
        theta = start.theta + step + pull
        if bool(self._per_parameter("momentum", start.parameters).any()):
            self._remember("momentum_buffer", start.parameters, nu * move[kept])
        report = replace(report, step_scale=nu, predicted_kl=nu**2 * predicted, kl=kl)
        return Proposal(theta, report)
