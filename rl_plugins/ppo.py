"""Proximal policy optimisation (Schulman et al. 2017): clipped or penalised, with a hard KL bound.

Each update:

    1. collect a rollout with π_old, estimate advantages A           agents/actor_critic.py
    2. for every epoch, for every minibatch of the rollout:
       r = π_θ/π_old
       clip:     L = E[min(r A, clip(r, 1 − ε, 1 + ε) A)]            clipped_objective
       penalty:  L = E[r A] − β E[KL(π_old ‖ π_θ)]
       θ moves by one optimizer step along ∇(L + c E[entropy])       parts/first_order.py
    3. penalty: β doubles where the epochs' KL came out above 1.5 times its target, halves where
       below target / 1.5
    4. with max_kl: the first θ_old + cʲ (θ − θ_old), j = 0, 1, …,
       with E[KL(π_old ‖ π_θ)] <= max_kl                             parts/pull_back.py
    5. fit the critic to the λ-returns                               critics/

Different from the paper and from common implementations: the critic shares no parameters with the
policy and is fitted apart, so that there is no value-loss coefficient; the old policy's
log-probabilities are computed once, with the parameters of the update's start; clipping and
penalty bound no KL, step 4 does, and it keeps the direction that the epochs found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from rl_plugins.parts.first_order import Snapshot, ascend
from rl_plugins.parts.optimizers import make_optimizer
from rl_plugins.parts.pull_back import frozen, pull_back
from rl_plugins.parts.surrogate import PolicyStep, Surrogate
from rl_plugins.reports import GradientReport, StepStatus
from rl_plugins.settings import Settings, require_least, require_one_of


@dataclass(frozen=True)
class PPOSettings(Settings):
    """Settings of one update of the policy."""

    objective: Literal["clip", "penalty"] = "clip"
    """The clipped surrogate, or the one with a KL penalty."""
    clip: float = 0.2
    """ε, how far a ratio is rewarded for moving from 1; less for smaller updates."""
    penalty: float = 1.0
    """β at the start; it adapts."""
    target_kl: float = 0.01
    """KL of an update that β is adapted towards, in nats; less for smaller updates."""
    max_kl: float | None = None
    """Hard bound on E[KL(π_old ‖ π_θ)] of an update, in nats, where learning collapses. Unset:
    none."""
    epochs: int = 10
    """Passes over the rollout; fewer where the KL of updates is large."""
    batch_size: int = 64
    """Steps of a minibatch; for sequences, as many of them as hold about so many steps."""
    optimizer: str = "Adam"
    """An optimizer of torch.optim, or any other as package.module:Class."""
    learning_rate: float = 3e-4
    """Learning rate of the optimizer; less for smaller updates."""
    learning_rate_steps: int | None = None
    """Environment steps over which the learning rate falls linearly to 0. Unset: it is constant."""
    entropy_coefficient: float = 0.0
    """c, the weight of the entropy in the objective; more where a policy is certain too early."""
    max_gradient_norm: float = 0.5
    """The gradient of a minibatch is scaled down to this norm; more where that is always so."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of(self, "objective", "clip", "penalty")
        require_least(self, 0, "clip", "penalty", "target_kl", "learning_rate", exclusive=True)
        require_least(self, 0, "max_gradient_norm", exclusive=True)
        require_least(self, 0, "entropy_coefficient")
        require_least(self, 1, "epochs", "batch_size")
        if self.max_kl is not None:
            require_least(self, 0, "max_kl", exclusive=True)
        if self.learning_rate_steps is not None:
            require_least(self, 1, "learning_rate_steps")


def clipped_objective(ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """min(r A, clip(r, 1 − ε, 1 + ε) A), one number a step.

    Its gradient in r is A, but 0 where r has gone further than ε in the direction that A rewards.

    Parameters
    ----------
    ratio
        r = π_θ/π_old of the actions taken.
    advantages
        A, shaped like the ratio.
    clip
        ε.

    Notes
    -----
    Source: Schulman et al. 2017, equation 7.

    Examples
    --------
    >>> clipped_objective(torch.tensor([1.5, 0.5]), torch.tensor([1.0, 1.0]), 0.2)
    tensor([1.2000, 0.5000])
    """
    return torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


class PPO(PolicyStep[PPOSettings]):
    """PPO for any module that maps observations to a torch Distribution.

    ``PPO(policy).step(observations, actions, advantages)`` is all that own rollouts need.

    Parameters
    ----------
    policy, generator
        As for :class:`PolicyStep`.
    **settings
        Fields of :class:`PPOSettings`.
    """

    Settings = PPOSettings
    counters: ClassVar[tuple[str, ...]] = ("penalty", "steps_taken")

    def __init__(
        self, policy: nn.Module, *, generator: torch.Generator | None = None, **settings: Any
    ) -> None:
        super().__init__(policy, generator=generator, **settings)
        name, rate = self.settings.optimizer, self.settings.learning_rate
        self.optimizers = [make_optimizer(name, self.parameters(), rate)]
        self.penalty = self.settings.penalty
        self.steps_taken = 0

    def step(
        self, observations: Any, actions: Tensor, advantages: Tensor, mask: Tensor | None = None
    ) -> GradientReport:
        """One update; no critic needed.

        The parameters, and the optimizer's state, stay as they were, bit for bit, where anything in
        the update is NaN or infinite, where no part of it keeps ``max_kl``, and where an exception
        comes out of the policy.

        Parameters
        ----------
        observations, actions, advantages, mask
            As for :meth:`rl_plugins.TRPO.step`.

        Raises
        ------
        ValueError
            Where the shapes do not fit.

        Notes
        -----
        Cost: ``epochs`` gradients of the batch, in minibatches, and two forward passes; with a
        penalty one more for each minibatch, with ``max_kl`` one for each candidate.
        """
        settings, parameters = self.settings, self.parameters()
        surrogate = Surrogate(self.policy, observations, actions, advantages, mask)
        kl = improvement = clipped = whole = math.nan
        fraction = 0.0
        with Snapshot(parameters, *self.optimizers) as before:
            learning_rate = self._anneal(surrogate.count)
            norm = self._climb(surrogate)
            if math.isfinite(norm):
                fraction = 1.0
                if settings.max_kl is not None:
                    pulled = pull_back(
                        self.policy, parameters, surrogate, before.theta, settings.max_kl
                    )
                    fraction, whole = pulled.fraction, pulled.whole
                with torch.no_grad():
                    pi = self.policy(observations)
                    ratio = surrogate.ratio(pi)
                    kl, improvement = float(surrogate.kl(pi)), float(surrogate.improvement(pi))
                    beyond = ((ratio - 1).abs() > settings.clip).to(ratio.dtype)
                    clipped = float(surrogate.mean(beyond))
            status = StepStatus.TAKEN if fraction else StepStatus.REFUSED
            if not all(map(math.isfinite, (norm, kl, improvement))):
                status = StepStatus.NONFINITE
            if status is not StepStatus.TAKEN:
                before.restore()
        if settings.objective == "penalty" and status is not StepStatus.NONFINITE:
            self._adapt_penalty(kl if math.isnan(whole) else whole)
        return GradientReport(
            status=status,
            kl=kl,
            entropy=float(surrogate.entropy()),
            improvement=improvement,
            gradient_norm=norm,
            learning_rate=learning_rate,
            clip_fraction=clipped,
            penalty=self.penalty if settings.objective == "penalty" else 0.0,
            step_fraction=fraction if status is StepStatus.TAKEN else 0.0,
        )

    def _climb(self, surrogate: Surrogate) -> float:
        """All epochs; the mean norm of the gradients. Ends at the first that is not finite: a
        policy may raise for the parameters that it leads to."""
        settings, parameters = self.settings, self.parameters()
        norms = []
        # A distribution cannot be cut into minibatches: the old policy is asked again.
        old = frozen(self.policy) if settings.objective == "penalty" else None
        epochs, size = settings.epochs, settings.batch_size
        for part in surrogate.minibatches(epochs, size, self.generator, old):
            pi = self.policy(part.observations)
            ratio = part.ratio(pi)
            if settings.objective == "clip":
                objective = part.mean(clipped_objective(ratio, part.advantages, settings.clip))
            else:
                objective = part.mean(ratio * part.advantages) - self.penalty * part.kl(pi)
            if settings.entropy_coefficient:
                objective = objective + settings.entropy_coefficient * part.mean(pi.entropy())
            norm = ascend(objective, parameters, self.optimizers[0], settings.max_gradient_norm)
            norms.append(float(norm))
            if not math.isfinite(norms[-1]):
                break
        return sum(norms) / len(norms)

    def _adapt_penalty(self, kl: float) -> None:
        # Section 4 of the paper; the bounds keep β from running away where the KL cannot follow.
        if kl > 1.5 * self.settings.target_kl:
            self.penalty = min(2 * self.penalty, 1e6)
        elif kl < self.settings.target_kl / 1.5:
            self.penalty = max(self.penalty / 2, 1e-6)

    def _anneal(self, steps: int) -> float:
        rate = self.settings.learning_rate
        if self.settings.learning_rate_steps is not None:
            rate *= max(0.0, 1 - self.steps_taken / self.settings.learning_rate_steps)
            for group in self.optimizers[0].param_groups:
                group["lr"] = rate
        self.steps_taken += steps
        return rate
