"""Natural policy gradient (Kakade 2001), with steps of a given KL.

Each update:

    1. collect a rollout with π_old, estimate advantages A           agents/actor_critic.py
    2. g = ∇_θ E[π_θ/π_old · A] at θ_old = ∇J(θ_old)                 parts/surrogate.py
    3. K = Fisher matrix of π at θ_old                               natgrad.Fisher
    4. solve (K + λI) s = g                                          natgrad.cg
    5. α = √(2δ / sᵀK s); 3 to 5 are natgrad.natural_step            parts/natural_gradient.py
    6. θ = θ_old + α s; shortened where the KL came out above 2 δ    parts/pull_back.py
    7. fit the critic to the λ-returns                               critics/

Different from the paper and from some implementations: the step is scaled to a KL of δ to second
order, not by a learning rate; with a constant multiple of s its length follows the scale of the
rewards. There is no line search: no improvement is asked for, and the KL may be up to 2 δ, as the
report says. Step 6 is for near-deterministic policies, where the forecast is wrong by any factor:
without it the actual KL reached 100 δ and training collapsed. A step that makes the policy's
distribution not finite is taken back, bit for bit.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from natgrad import LineSearchResult, LineSearchStatus
from natgrad.flat import assign, flatten, gradient
from rl_plugins.parts.first_order import Snapshot
from rl_plugins.parts.natural_gradient import NaturalGradientSettings, policy_step, report_step
from rl_plugins.parts.pull_back import pull_back
from rl_plugins.parts.surrogate import PolicyStep, Surrogate
from rl_plugins.reports import TrustRegionReport

MOST_KL = 2.0


class NPG(PolicyStep[NaturalGradientSettings]):
    """Natural policy gradient for any module that maps observations to a torch Distribution.

    ``NPG(policy, max_kl=0.01).step(observations, actions, advantages)`` is all that own rollouts
    need.

    Parameters
    ----------
    policy, generator
        As for :class:`PolicyStep`; nothing is drawn.
    **settings
        Fields of :class:`NaturalGradientSettings`.
    """

    Settings = NaturalGradientSettings

    def step(
        self, observations: Any, actions: Tensor, advantages: Tensor, mask: Tensor | None = None
    ) -> TrustRegionReport:
        """One natural-gradient step of the policy; no critic needed.

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
            Where the shapes do not fit.

        Notes
        -----
        Cost: ``cg_iterations`` Fisher products, two gradients, and mostly two forward passes.
        """
        settings, parameters = self.settings, self.parameters()
        surrogate = Surrogate(self.policy, observations, actions, advantages, mask)
        objective = surrogate.objective(self.policy(observations))
        g = gradient(objective, parameters)
        natural = policy_step(self.policy, parameters, surrogate, g, settings)

        finite = bool(torch.isfinite(natural.d).all())
        status = LineSearchStatus.ZERO_STEP if finite else LineSearchStatus.NONFINITE
        evaluations, fraction = 0, 0.0
        improvement = kl = math.nan
        with Snapshot(parameters) as before:
            if finite and bool(natural.d.any()):
                evaluations = 1
                assign(parameters, before.theta + natural.d)
                # Where a policy is nearly certain the quadratic model is wrong by any factor.
                fraction = pull_back(
                    self.policy, parameters, surrogate, before.theta, MOST_KL * settings.max_kl
                ).fraction
                with torch.no_grad():
                    pi = self.policy(observations)
                    improvement, kl = float(surrogate.improvement(pi)), float(surrogate.kl(pi))
                sound = fraction and math.isfinite(improvement)
                status = LineSearchStatus.ACCEPTED if sound else LineSearchStatus.NONFINITE
            taken = status is LineSearchStatus.ACCEPTED
            if not taken:
                before.restore()
        search = LineSearchResult(
            theta=flatten(parameters),
            status=status,
            fraction=fraction if taken else 0.0,
            objective=-improvement,
            constraint=kl,
            improvement=improvement,
            evaluations=evaluations,
        )
        return report_step(surrogate, g, natural, search, settings.max_kl)
