"""Advantage actor-critic (Mnih et al. 2016, synchronous), and ACKTR (Wu et al. 2017) as a preset.

Each update:

    1. collect a short rollout with π_old, estimate advantages A     agents/actor_critic.py
    2. g = ∇_θ E[log π_θ(a|s) · A] + c ∇_θ E[entropy]                one backward pass
    3. θ moves by one step of an optimizer along g                   parts/first_order.py
       ACKTR instead: s = (K + λI)⁻¹ g, θ = θ + min(η, √(2δ / sᵀK s)) s,
       with K the Kronecker-factored Fisher matrix                   natgrad.Kronecker
    4. fit the critic to the λ-returns, which stay fixed             critics/

Different from the paper and from common implementations: advantages are GAE's (λ = 1 gives the
paper's n-step returns) and standardised; the critic has an optimizer of its own, since it shares no
parameters with the policy. ACKTR's factors are those of the present batch, exact in the output
distribution, not running averages over sampled labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from natgrad import Kronecker, step_size
from natgrad.flat import assign, gradient
from rl_plugins.parts.first_order import Snapshot, ascend
from rl_plugins.parts.optimizers import make_optimizer
from rl_plugins.parts.surrogate import PolicyStep, Surrogate
from rl_plugins.reports import GradientReport, StepStatus
from rl_plugins.settings import Settings, require_least

KFAC = "KFAC"
NO_SEQUENCES = "KFAC has no exact factors for them: take another optimizer, or npg or trpo"


@dataclass(frozen=True)
class A2CSettings(Settings):
    """Settings of one gradient step."""

    optimizer: str = "RMSprop"
    """An optimizer of torch.optim, any other as package.module:Class, or KFAC, which makes it
    ACKTR."""
    learning_rate: float = 7e-4
    """Learning rate of the optimizer; for KFAC η, the most that a step s is multiplied by. Less
    where the KL of updates is large."""
    entropy_coefficient: float = 0.0
    """c, the weight of the entropy in the objective; more where a policy is certain too early."""
    max_gradient_norm: float = 0.5
    """The gradient is scaled down to this norm; not used by KFAC."""
    max_kl: float = 0.001
    """δ of KFAC, the KL of an update, in nats; less for smaller updates."""
    damping: float = 0.01
    """λ of KFAC, added to the Fisher matrix; more where updates are erratic."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, 0, "learning_rate", "max_gradient_norm", "max_kl", exclusive=True)
        require_least(self, 0, "entropy_coefficient", "damping")


class A2C(PolicyStep[A2CSettings]):
    """A2C for any module that maps observations to a torch Distribution.

    ``A2C(policy).step(observations, actions, advantages)`` is all that own rollouts need.

    Parameters
    ----------
    policy, generator
        As for :class:`PolicyStep`; nothing is drawn.
    **settings
        Fields of :class:`A2CSettings`.
    """

    Settings = A2CSettings

    def __init__(
        self, policy: nn.Module, *, generator: torch.Generator | None = None, **settings: Any
    ) -> None:
        super().__init__(policy, generator=generator, **settings)
        name, rate = self.settings.optimizer, self.settings.learning_rate
        if name != KFAC:
            self.optimizers = [make_optimizer(name, self.parameters(), rate)]

    def step(
        self, observations: Any, actions: Tensor, advantages: Tensor, mask: Tensor | None = None
    ) -> GradientReport:
        """One gradient step; no critic needed.

        The parameters, and the optimizer's state, stay as they were, bit for bit, where anything in
        the update is NaN or infinite, and where an exception comes out of the policy.

        Parameters
        ----------
        observations
            B states, or N sequences of T, in the form that the policy takes; all finite.
        actions
            The actions taken there, (B, …) or (N, T, …).
        advantages
            One number a step, (B,) or (N, T): the batch shape of ``policy(observations)``.
        mask
            bool, shaped like the advantages: the steps that count; None: all.

        Raises
        ------
        ValueError
            Where the shapes do not fit, and for sequences with KFAC.

        Notes
        -----
        Cost: one gradient and two forward passes; with KFAC the factors besides.
        """
        settings, parameters = self.settings, self.parameters()
        surrogate = Surrogate(self.policy, observations, actions, advantages, mask)
        pi = self.policy(observations)
        objective = surrogate.mean(pi.log_prob(surrogate.actions) * surrogate.advantages)
        if settings.entropy_coefficient:
            objective = objective + settings.entropy_coefficient * surrogate.mean(pi.entropy())
        kl = improvement = math.nan
        with Snapshot(parameters, *self.optimizers) as before:
            if self.optimizers:
                norm = float(
                    ascend(objective, parameters, self.optimizers[0], settings.max_gradient_norm)
                )
            else:
                g = gradient(objective, parameters)
                norm = float(torch.linalg.vector_norm(g))
                if math.isfinite(norm):
                    assign(parameters, before.theta + self._kfac_step(surrogate, g))
            if math.isfinite(norm):  # a policy may raise for parameters that are not
                with torch.no_grad():
                    pi = self.policy(observations)
                    kl, improvement = float(surrogate.kl(pi)), float(surrogate.improvement(pi))
            sound = all(map(math.isfinite, (norm, kl, improvement)))
            if not sound:
                before.restore()
        return GradientReport(
            status=StepStatus.TAKEN if sound else StepStatus.NONFINITE,
            kl=kl,
            entropy=float(surrogate.entropy()),
            improvement=improvement,
            gradient_norm=norm,
            learning_rate=settings.learning_rate,
            step_fraction=float(sound),
        )

    def _kfac_step(self, surrogate: Surrogate, g: Tensor) -> Tensor:
        if surrogate.advantages.ndim > 1:
            raise ValueError(f"got sequences {tuple(surrogate.advantages.shape)}; {NO_SEQUENCES}")
        if surrogate.mask is not None:
            surrogate = surrogate.part(surrogate.mask)
        K = Kronecker(self.policy, surrogate.observations, parameters=self.parameters())
        s = K.solve(g, damping=self.settings.damping)
        alpha, _ = step_size(s @ (K @ s), self.settings.max_kl)
        return min(self.settings.learning_rate, float(alpha)) * s


@dataclass(frozen=True)
class ACKTRSettings(A2CSettings):
    """Settings of one Kronecker-factored natural-gradient step."""

    optimizer: str = KFAC
    """KFAC makes it ACKTR; any other optimizer makes it A2C."""
    learning_rate: float = 1.0
    """η, the most that a step s is multiplied by; less for smaller updates."""


class ACKTR(A2C):
    """A2C with ``optimizer="KFAC"``; its settings are the fields of :class:`ACKTRSettings`."""

    Settings = ACKTRSettings
