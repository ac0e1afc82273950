"""K-FAC: layers' natural gradients from Kronecker factors, refreshed now and then."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from natgrad import flat
from natgrad.curvature import DampingSplit, Kronecker, Sharing
from natgrad.curvature.kronecker_block import NonFiniteFactors
from natgrad.curvature.layers import candidates
from natgrad.optim.likelihoods import Likelihood, likelihood_of
from natgrad.optim.report import StepReport, StepStatus
from natgrad.optim.second_order import (
    Outcome,
    Parameters,
    SecondOrderOptimizer,
    Start,
    require_least,
)

# Their names in `state`.
LAYER_FACTORS = ("input_factor", "output_factor", "second_moments")
REST = "rest_factor"


class KFAC(SecondOrderOptimizer):
    """m ← μ m + ν s with (K + λI) s = g, θ ← (1 − lr w) θ − lr m; K ≈ F, the Fisher matrix.

    ν = min(1, √(2δ / (lr² sᵀg))) keeps the quadratic KL of lr s below δ, the ``max_kl`` (None: no
    bound); μ is ``momentum``, w the decoupled ``weight_decay``. Plain ``loss.backward()`` and
    ``optimizer.step()``; a closure is called once, as Adam would.

    K is :class:`natgrad.Kronecker` on the batch behind the gradient, computed at the first step and
    every ``refresh_every`` steps after it, as a moving average: an equal share for each refresh at
    first, ``decay`` of the old later on. ``samples`` labels a batch element are drawn from the
    model by generators of the optimizer's own, seeded by ``seed`` and the step; None takes the
    output factors exactly, from one backward pass a class. ``corrected`` makes it E-KFAC.
    ``sharing`` says what positions of one sample (pixels, time steps) are. For ``likelihood`` see
    :class:`natgrad.optim.NaturalGradient`.

    Cost: a step, two triangular solves a layer; a refresh, one forward pass, some 3 backward passes
    and a factorisation a layer. Raises ``ValueError`` for settings out of range, layers that it
    does not know (:class:`natgrad.Kronecker`), factors singular for want of damping;
    ``RuntimeError`` where a refresh is due and no batch is known.

    Source: Martens & Grosse 2015; George et al. 2018 (E-KFAC); the bound of Ba, Grosse & Martens
    2017, section 3.4; weight decay after Zhang, Wang, Xu & Grosse, "Three mechanisms of weight
    decay regularization", 2019. Different from the first: learning rate and momentum are given.

    >>> model, x = nn.Linear(2, 3), torch.eye(2)
    >>> optimizer = KFAC(model, likelihood="categorical", lr=0.1)
    >>> torch.nn.functional.cross_entropy(model(x), torch.tensor([0, 2])).backward()
    >>> optimizer.step()
    >>> optimizer.last_step.status.name
    'ACCEPTED'
    """

    whole = ("max_kl", "damping", "maximize")

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
        maximize: bool = False,
    ) -> None:
        if model is None and not isinstance(params, nn.Module):
            raise ValueError("KFAC needs the model: KFAC(model, ...), or KFAC(groups, model=model)")
        if refresh_every < 1 or not 0 <= decay < 1:
            raise ValueError(
                "refresh_every must be at least 1 and decay in [0, 1), got "
                f"{refresh_every} and {decay}"
            )
        self._likelihood = likelihood_of(likelihood)
        self._refresh_every, self._decay, self._samples = refresh_every, decay, samples
        self._sharing, self._corrected, self._seed = sharing, corrected, seed
        self._kronecker: Kronecker | None = None
        defaults = {
            "lr": lr, "damping": damping, "max_kl": max_kl, "momentum": momentum,
            "weight_decay": weight_decay, "maximize": maximize,
        }  # fmt: skip
        super().__init__(params, defaults, model)

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        require_least(group, 0, "damping", "momentum", "weight_decay")
        if group["max_kl"] is not None:
            require_least(group, 0, "max_kl", exclusive=True)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch.optim: the factors come back bitwise, and with them the next step."""
        super().load_state_dict(state_dict)
        self._kronecker = None

    def __getstate__(self) -> dict[str, Any]:
        # The factors are in `state`; the operator made of them names parameters by identity.
        return {**super().__getstate__(), "_kronecker": None}

    def _find(self, start: Start) -> Outcome:
        report = StepReport(
            StepStatus.ACCEPTED, damping=float(self._setting("damping")), solver="kronecker"
        )
        trained = [parameter for parameter in self._parameters() if parameter.requires_grad]
        try:
            K = self._factored(trained)
        except NonFiniteFactors:
            return Outcome(None, replace(report, status=StepStatus.NONFINITE_CURVATURE))
        # Parameters without a gradient take no part, but have their rows in K.
        active = set(map(id, start.parameters))
        pieces = iter(flat.unflatten(start.gradient, start.parameters))
        g = flat.flatten(next(pieces) if id(p) in active else torch.zeros_like(p) for p in trained)
        kept = torch.cat([torch.full((p.numel(),), id(p) in active) for p in trained]).to(g.device)
        split = DampingSplit.EXACT if self._corrected else DampingSplit.TRACE
        s = torch.where(kept, K.solve(g, damping=report.damping, split=split), 0.0)
        d = self._rates(trained) * s
        kl = float(d.double() @ (K @ d).double() / 2)
        max_kl = self._setting("max_kl")
        if not math.isfinite(kl):
            return Outcome(None, replace(report, status=StepStatus.NONFINITE_CURVATURE))
        nu = 1.0 if max_kl is None or kl <= max_kl else math.sqrt(max_kl / kl)
        return self._moved(start, nu * s[kept], replace(report, step_scale=nu, kl=nu**2 * kl))

    def _moved(self, start: Start, s: Tensor, report: StepReport) -> Outcome:
        """θ after momentum and weight decay, which are each group's own."""
        thetas, buffers = [], {}
        group_of = {id(p): group for group in self.param_groups for p in group["params"]}
        pieces = flat.unflatten(s, start.parameters)
        for parameter, piece in zip(start.parameters, pieces, strict=True):
            group, before = group_of[id(parameter)], self.state[parameter].get("momentum_buffer")
            rate, momentum = float(group["lr"]), float(group["momentum"])
            move = piece if before is None else piece + momentum * before
            thetas.append(parameter * (1 - rate * float(group["weight_decay"])) - rate * move)
            if momentum:
                buffers[parameter] = move
        theta = flat.flatten(thetas)
        if not bool(torch.isfinite(theta).all()):
            return Outcome(None, replace(report, status=StepStatus.NONFINITE_CURVATURE))
        for parameter, buffer in buffers.items():
            self.state[parameter]["momentum_buffer"] = buffer.clone()
        self._counters["steps"] = self._counters.get("steps", 0) + 1
        return Outcome(theta, report)

    def _factored(self, trained: list[Tensor]) -> Kronecker:
        """K for this step: as it was, as a checkpoint has it, or of this step's batch."""
        counters = self._counters
        if self._kronecker is None:
            self._kronecker = self._restored(trained)
        covered = [] if self._kronecker is None else [id(p) for p in self._kronecker.parameters]
        if (
            covered != [id(p) for p in trained]
            or counters.get("steps", 0) % self._refresh_every == 0
        ):
            count = counters.get("refreshes", 0) + 1
            self._kronecker = self._refreshed(trained, count)
            counters["refreshes"] = count
            self._store(self._kronecker)
        assert self._kronecker is not None
        return self._kronecker

    def _refreshed(self, trained: list[Tensor], count: int) -> Kronecker:
        """K of this step's batches, blended with what is known."""
        assert self._observed is not None
        observed, kronecker = self._observed, self._kronecker
        batches = observed.required_batches()
        old = min(self._decay, 1 - 1 / count)
        for index, batch in enumerate(batches):
            # In the end `old` of the old, and an equal share of each batch.
            before = old + (1 - old) * index / len(batches)
            after = old + (1 - old) * (index + 1) / len(batches)
            data, join = batch.split()
            # Seeded by the step alone: nothing to save, and nobody else's random numbers are drawn.
            generator = torch.Generator(trained[0].device)
            generator.manual_seed((self._seed << 40) + (count << 10) + index)
            with batch.random.replayed():
                kronecker = Kronecker(
                    observed.model, data, forward=partial(self._distribution, join=join),
                    parameters=trained, samples=self._samples, sharing=self._sharing,
                    corrected=self._corrected, generator=generator, previous=kronecker,
                    decay=before / after,
                )  # fmt: skip
        assert kronecker is not None
        return kronecker

    def _distribution(self, pieces: Any, join: Any) -> Any:
        assert self._observed is not None
        return self._likelihood(self._observed.call(pieces, join=join))

    def _store(self, kronecker: Kronecker) -> None:
        """Put the factors where torch saves them: a layer's with its weight, those of the other
        parameters row by row with each."""
        for owners, factors in kronecker.factors():
            if len(factors) > 1:
                self.state[owners[0]].update(zip(LAYER_FACTORS, factors, strict=False))
                continue
            rows = torch.split(factors[0], [owner.numel() for owner in owners])
            for owner, row in zip(owners, rows, strict=True):
                self.state[owner][REST] = row

    def _restored(self, trained: list[Tensor]) -> Kronecker | None:
        """K of a loaded ``state``, or None where that holds no factors."""
        assert self._observed is not None
        blocks: list[tuple[list[Tensor], tuple[Tensor, ...]]] = []
        for layer in candidates(self._observed.model, trained):
            owners = layer.owners
            state = self.state[owners[0]]
            factors = tuple(state[name] for name in LAYER_FACTORS if name in state)
            if factors:
                blocks.append((list(owners), factors))
        rest = [parameter for parameter in trained if REST in self.state[parameter]]
        if rest:
            blocks.append((rest, (torch.cat([self.state[p][REST] for p in rest]),)))
        if not blocks:
            return None
        return Kronecker.restored(
            self._observed.model, trained, blocks,
            sharing=self._sharing, corrected=self._corrected,
        )  # fmt: skip
