"""Trust region policy optimisation (Schulman et al. 2015).

Each update:

    1. collect a rollout with π_old, estimate advantages A           agents/actor_critic.py
    2. g = ∇_θ E[π_θ/π_old · A] at θ_old                             parts/surrogate.py
    3. K = Fisher matrix of π at θ_old = ∇² E[KL(π_old ‖ π_θ)]       natgrad.Fisher
    4. solve (K + λI) s = g                                          natgrad.cg
    5. α = √(2δ / sᵀK s); 3 to 5 are natgrad.natural_step            parts/natural_gradient.py
    6. the first θ_old + cʲ α s, j = 0, 1, …, with
       E[KL(π_old ‖ π_θ)] <= δ and an improved surrogate             natgrad.backtracking
    7. if there is none, θ stays θ_old, bit for bit
    8. fit the critic to the λ-returns                               critics/

Different from the paper and from common implementations: sᵀK s is taken without the damping, and
costs no product; K may be estimated on every k-th state, g never is; the KL bound is tested on all
states, at exactly δ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from natgrad import backtracking
from natgrad.flat import assign, flatten, gradient
from rl_plugins.parts.natural_gradient import NaturalGradientSettings, policy_step, report_step
from rl_plugins.parts.surrogate import PolicyStep, Surrogate
from rl_plugins.reports import TrustRegionReport
from rl_plugins.settings import require_between, require_least


@dataclass(frozen=True)
class TRPOSettings(NaturalGradientSettings):
    """Settings of one trust-region step."""

    accept_ratio: float = 0.1
    """Least part of the improvement expected to first order that the line search accepts; more for
    surer, shorter steps."""
    shrink: float = 0.8
    """Factor from one candidate of the line search to the next; nearer to 1 comes closer to the
    bound, at more forward passes."""
    max_backtracks: int = 10
    """Candidates after the first before the update is refused; more where many are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, 0, "shrink", exclusive=True)
        require_least(self, 0, "max_backtracks")
        require_between(self, 0, 0.999, "accept_ratio", "shrink")


class TRPO(PolicyStep[TRPOSettings]):
    """TRPO for any module that maps observations to a torch Distribution.

    ``TRPO(policy, max_kl=0.01).step(observations, actions, advantages)`` is all that own rollouts
    need. The training loop uses :class:`rl_plugins.agents.TRPOAgent`, which adds the critic.

    Parameters
    ----------
    policy, generator
        As for :class:`PolicyStep`; nothing is drawn.
    **settings
        Fields of :class:`TRPOSettings`.
    """

    Settings = TRPOSettings

    def step(
        self, observations: Any, actions: Tensor, advantages: Tensor, mask: Tensor | None = None
    ) -> TrustRegionReport:
        """One trust-region step; no critic needed. The policy changes only if it is accepted.

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
        Cost: ``cg_iterations`` Fisher products, two gradients, and a forward pass for every
        candidate of the line search.
        """
        settings, parameters = self.settings, self.parameters()
        theta_old = flatten(parameters)
        surrogate = Surrogate(self.policy, observations, actions, advantages, mask)
        objective = surrogate.objective(self.policy(observations))
        g = gradient(objective, parameters)
        natural = policy_step(self.policy, parameters, surrogate, g, settings)

        def evaluate(theta: Tensor) -> tuple[Tensor, Tensor]:
            assign(parameters, theta)
            pi = self.policy(observations)
            return -surrogate.objective(pi), surrogate.kl(pi)

        theta_new = theta_old
        try:
            search = backtracking(
                evaluate,
                theta_old,
                natural.d,
                bound=settings.max_kl,
                start_objective=-objective.detach(),
                expected_improvement=g @ natural.d,
                accept_ratio=settings.accept_ratio,
                shrink=settings.shrink,
                max_backtracks=settings.max_backtracks,
            )
            theta_new = search.theta
        finally:  # after an exception in the policy, too, no candidate is left in it
            assign(parameters, theta_new)
        return report_step(surrogate, g, natural, search, settings.max_kl)
