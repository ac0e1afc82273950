"""Trust region policy optimisation (Schulman et al. 2015).

Each update:

    1. collect a rollout with π_old, estimate advantages A           on_policy.py, advantages.py
    2. g = ∇_θ E[π_θ/π_old · A] at θ_old                             the surrogate's gradient
    3. K = Fisher matrix of π at θ_old = ∇² E[KL(π_old ‖ π_θ)]       natgrad.Fisher
    4. solve (K + λI) s = g                                          natgrad.cg
    5. α = √(2δ / sᵀK s)                                             natgrad.step_size
    6. the first θ_old + cʲ α s, j = 0, 1, …, with
       E[KL(π_old ‖ π_θ)] <= δ and an improved surrogate             natgrad.backtracking
    7. if there is none, θ stays θ_old, bit for bit
    8. fit the critic to the λ-returns                               critics/

Different from the paper and from common implementations: sᵀK s is taken without the damping (with
it every step is shorter than δ allows), from K s that CG already holds (no further product); K may
be estimated on every k-th state, g never is; the KL bound is tested on all states, at exactly δ.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from gymnasium import Space
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from natgrad import Fisher, backtracking, cg, step_size
from natgrad.flat import assign, flatten, gradient
from rl_plugins.data import Rollout
from rl_plugins.errors import require_between, require_least
from rl_plugins.on_policy import ActorCritic, OnPolicyConfig
from rl_plugins.plugin import configure
from rl_plugins.reports import StepReport


@dataclass(frozen=True)
class TRPOSettings:
    """Settings of one trust-region step."""

    max_kl: float = 0.01
    """δ, the bound on E[KL(π_old ‖ π_θ)] of one update, in nats."""
    damping: float = 0.1
    """λ, added to the Fisher matrix in the solve, not in the step size."""
    cg_iterations: int = 15
    """Most conjugate-gradient iterations an update."""
    cg_tolerance: float = 1e-3
    """Relative residual at which conjugate gradients stop early."""
    fisher_stride: int = 1
    """Estimate the Fisher matrix on every k-th state; the gradient uses all."""
    fisher_chunk_size: int | None = None
    """States a chunk of each Fisher product: memory independent of the batch, at about 2.5 times
    the time. Unset: one graph is kept."""
    accept_ratio: float = 0.1
    """Least part of the improvement expected to first order that the line search accepts."""
    shrink: float = 0.8
    """Factor from one candidate of the line search to the next."""
    max_backtracks: int = 10
    """Candidates after the first before the update is refused."""

    def __post_init__(self) -> None:
        require_least(self, 0, "max_kl", "shrink", exclusive=True)
        require_least(self, 0, "damping", "cg_tolerance", "max_backtracks")
        require_least(self, 1, "cg_iterations", "fisher_stride")
        require_between(self, 0, 0.999, "accept_ratio", "shrink")
        if self.fisher_chunk_size is not None:
            require_least(self, 1, "fisher_chunk_size")


@dataclass(frozen=True)
class TRPOConfig(TRPOSettings, OnPolicyConfig):
    """Settings of TRPO with the policy and the critic that the training loop builds for it."""

    def __post_init__(self) -> None:
        TRPOSettings.__post_init__(self)
        OnPolicyConfig.__post_init__(self)


class TRPO:
    """TRPO for any module that maps observations to a torch Distribution.

    ``TRPO(policy, max_kl=0.01).step(observations, actions, advantages)`` is all that own rollouts
    need; its settings are the fields of :class:`TRPOSettings`. The training loop builds one with
    critic and normaliser by :meth:`build` and calls ``update``.
    """

    collects: ClassVar[Literal["rollouts", "transitions"]] = "rollouts"
    Config: ClassVar[type[TRPOConfig]] = TRPOConfig

    def __init__(self, policy: nn.Module, **settings: Any) -> None:
        self.policy = policy
        self.config = configure(TRPOSettings, settings)
        self._actor_critic: ActorCritic | None = None

    @classmethod
    def build(
        cls,
        observation_space: Space[Any],
        action_space: Space[Any],
        config: TRPOConfig,
        generator: torch.Generator,
    ) -> TRPO:
        """TRPO with the policy, critic and normaliser for a task's spaces."""
        actor_critic = ActorCritic(observation_space, action_space, config, generator)
        plugin = cls(actor_critic.policy)
        plugin.config, plugin._actor_critic = config, actor_critic
        return plugin

    def update(self, batch: Rollout) -> StepReport:
        """One iteration from a rollout: advantages, the step, the fit of the critic."""
        actor_critic = self._require_critic()
        learning = actor_critic.learning_batch(batch)
        report = self.step(learning.observations, learning.actions, learning.advantages)
        actor_critic.finish_update(learning)
        return replace(report, explained_variance=learning.explained_variance)

    def step(self, observations: Tensor, actions: Tensor, advantages: Tensor) -> StepReport:
        """One trust-region step from B states, actions and advantages (B,); no critic needed.

        ``policy(observations)`` must have batch shape (B,), so that ``log_prob`` is one number a
        state. The policy's parameters change only if the step is accepted. Raises ``ValueError``
        where the shapes do not fit. Cost: ``cg_iterations`` Fisher products, two gradients, and a
        forward pass for every candidate of the line search.
        """
        config = self.config
        # A critic that shares layers with the policy, or a reparametrised draw, must not pull g.
        actions, advantages = actions.detach(), advantages.detach()
        if not len(advantages):
            raise ValueError("the batch is empty: a step needs at least one state")
        parameters = [p for p in self.policy.parameters() if p.requires_grad]
        theta_old = flatten(parameters)
        with torch.no_grad():
            # A copy: a distribution may share memory with a parameter that the search overwrites.
            pi_old = copy.deepcopy(self.policy(observations))
            log_prob_old = pi_old.log_prob(actions)
            if log_prob_old.shape != advantages.shape:
                # Broadcasting would make a (B, B) matrix of it, and a wrong step, in silence.
                raise ValueError(
                    f"log_prob of the actions has shape {tuple(log_prob_old.shape)}, the "
                    f"advantages {tuple(advantages.shape)}; both must be (B,). Wrap a distribution "
                    "over several action dimensions in torch.distributions.Independent(..., 1)"
                )
            entropy = pi_old.entropy().mean()

        def surrogate(pi: Distribution) -> Tensor:
            ratio = torch.exp(pi.log_prob(actions) - log_prob_old)
            return (ratio * advantages).mean(dtype=torch.float64)

        objective = surrogate(self.policy(observations))
        g = gradient(objective, parameters)
        K = Fisher(
            self.policy,
            parameters,
            data=observations[:: config.fisher_stride],
            chunk_size=config.fisher_chunk_size,
        )
        s = cg(
            K.damped(config.damping), g,
            max_iterations=config.cg_iterations, rtol=config.cg_tolerance,
        )  # fmt: skip
        sKs = s.x.double() @ s.Ax.double() - config.damping * s.x.double().square().sum()
        alpha, _ = step_size(sKs, config.max_kl)
        step = alpha * s.x

        def evaluate(theta: Tensor) -> tuple[Tensor, Tensor]:
            assign(parameters, theta)
            pi = self.policy(observations)
            return -surrogate(pi), kl_divergence(pi_old, pi).mean(dtype=torch.float64)

        theta_new = theta_old
        try:
            search = backtracking(
                evaluate,
                theta_old,
                step,
                bound=config.max_kl,
                start_objective=-objective.detach(),
                expected_improvement=g @ step,
                accept_ratio=config.accept_ratio,
                shrink=config.shrink,
                max_backtracks=config.max_backtracks,
            )
            theta_new = search.theta
        finally:  # whatever happens in the policy, no candidate is left behind in it
            assign(parameters, theta_new)
        return StepReport.of(g, s, step, search, max_kl=config.max_kl, entropy=entropy)

    def state_dict(self) -> dict[str, Any]:
        return self._require_critic().state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._require_critic().load_state_dict(state)

    def _require_critic(self) -> ActorCritic:
        if self._actor_critic is None:
            raise ValueError(
                "this TRPO was made from a policy alone, without a critic: call "
                "step(observations, actions, advantages), or make it by TRPO.build(...)"
            )
        return self._actor_critic
