"""What TRPO and its family share: from a rollout to advantages, and the fit of the critic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from gymnasium import Space
from torch import Tensor, nn

from rl_plugins.advantages import gae
from rl_plugins.critics import (
    AdamRegression,
    Critic,
    GaussNewtonRegression,
    Regression,
    explained_variance,
)
from rl_plugins.data import Rollout
from rl_plugins.errors import require_between, require_least
from rl_plugins.policies import ObservationNormaliser, build_policy, mlp, observation_shape


@dataclass(frozen=True)
class OnPolicyConfig:
    """Settings of the policy, the critic and the advantages."""

    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the hidden tanh layers of the policy and of the critic."""
    initial_log_std: float = -0.5
    """Initial log standard deviation of Gaussian policies; 0 explores too much for most tasks."""
    normalise_observations: bool = True
    """Standardise observations by running moments kept in the policy."""
    discount: float = 0.99
    """γ."""
    decay: float = 0.95
    """λ of generalised advantage estimation."""
    critic: Literal["gauss-newton", "adam"] = "gauss-newton"
    """How the critic is fitted."""
    critic_steps: int = 2
    """Gauss-Newton steps an update."""
    critic_cg_iterations: int = 10
    """Conjugate-gradient iterations a Gauss-Newton step."""
    critic_damping: float = 0.1
    """Damping of the Gauss-Newton matrix, for targets of unit variance."""
    critic_stride: int = 1
    """Estimate the Gauss-Newton matrix on every k-th state; the gradient uses all."""
    critic_epochs: int = 20
    """Adam's passes over the rollout an update."""
    critic_batch_size: int = 128
    """Adam's minibatch."""
    critic_learning_rate: float = 1e-3
    """Adam's learning rate."""

    def __post_init__(self) -> None:
        if self.critic not in ("gauss-newton", "adam"):
            raise ValueError(f"critic must be 'gauss-newton' or 'adam', got {self.critic!r}")
        if any(size < 1 for size in self.hidden_sizes):
            raise ValueError(f"hidden_sizes must be at least 1, got {self.hidden_sizes}")
        require_between(self, 0, 1, "discount", "decay")
        require_between(self, -20, 5, "initial_log_std")
        require_least(self, 1, "critic_steps", "critic_cg_iterations", "critic_stride")
        require_least(self, 1, "critic_epochs", "critic_batch_size")
        require_least(self, 0, "critic_damping")
        require_least(self, 0, "critic_learning_rate", exclusive=True)


@dataclass(frozen=True)
class LearningBatch:
    """A flattened rollout of B = T · N steps; advantages standardised, targets not.

    ``already_seen`` says that the normaliser has taken these observations in.
    """

    observations: Tensor
    actions: Tensor
    advantages: Tensor
    targets: Tensor
    explained_variance: float
    already_seen: bool


class ActorCritic:
    """A policy and a critic that see observations through one normaliser."""

    def __init__(
        self,
        observation_space: Space[Any],
        action_space: Space[Any],
        config: OnPolicyConfig,
        generator: torch.Generator,
    ) -> None:
        shape = observation_shape(observation_space)
        self.normaliser = ObservationNormaliser(shape) if config.normalise_observations else None
        standardised = self.normaliser or nn.Identity()
        self.policy = build_policy(
            observation_space,
            action_space,
            standardised,
            hidden_sizes=config.hidden_sizes,
            initial_log_std=config.initial_log_std,
            generator=generator,
        )
        inputs = int(torch.Size(shape).numel())
        network = mlp(inputs, config.hidden_sizes, 1, output_gain=1.0, generator=generator)
        regression: Regression
        if config.critic == "adam":
            regression = AdamRegression(
                network,
                epochs=config.critic_epochs,
                batch_size=config.critic_batch_size,
                learning_rate=config.critic_learning_rate,
                generator=generator,
            )
        else:
            regression = GaussNewtonRegression(
                config.critic_steps,
                config.critic_cg_iterations,
                config.critic_damping,
                config.critic_stride,
            )
        self.critic = Critic(standardised, network, regression)
        self._discount, self._decay = config.discount, config.decay

    @torch.no_grad()
    def learning_batch(self, rollout: Rollout) -> LearningBatch:
        """Advantages by GAE, and the λ-returns that the critic regresses on."""
        observations = rollout.observations.flatten(0, 1)
        # The first rollout primes the statistics before its update. The policy's mean is near 0
        # then, whatever it sees; every later rollout is judged by the function that collected it.
        primes = self.normaliser is not None and not bool(self.normaliser.moments.count)
        if self.normaliser is not None and primes:
            self.normaliser.update(observations)
        values = self.critic(observations).view(rollout.rewards.shape)
        advantages = gae(
            rollout.rewards,
            values,
            rollout.next_values(self.critic, values),
            rollout.terminated,
            rollout.truncated,
            discount=self._discount,
            decay=self._decay,
        )
        targets = advantages + values
        return LearningBatch(
            observations,
            rollout.actions.flatten(0, 1),
            standardise(advantages.flatten()),
            targets.flatten(),
            explained_variance(values, targets),
            already_seen=primes,
        )

    def finish_update(self, batch: LearningBatch) -> None:
        """Fit the critic; then, and only then, move the normaliser on to the new observations.

        The layers that read it are changed so that policy and critic stay the functions they are:
        otherwise the move would take the policy further than the bound on its KL allows.
        """
        self.critic.fit(batch.observations, batch.targets)
        if self.normaliser is not None and not batch.already_seen:
            first_layers = [self.policy.network[0], self.critic.network[0]]
            self.normaliser.update(batch.observations, readers=first_layers)

    def state_dict(self) -> dict[str, Any]:
        return {
            "policy": self.policy.state_dict(),
            "critic": self.critic.state_dict(),
            "regression": self.critic.regression.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        self.critic.load_state_dict(state["critic"])
        self.critic.regression.load_state_dict(state["regression"])


def standardise(advantages: Tensor) -> Tensor:
    """Zero mean and unit standard deviation; only centred where all are equal."""
    centred = advantages - advantages.mean()
    deviation = centred.double().square().mean().sqrt().to(centred.dtype)
    # Below rounding of the mean the advantages are equal: their deviation is that rounding.
    noise = 4 * torch.finfo(centred.dtype).eps * advantages.abs().amax()
    return centred / torch.where(deviation > noise, deviation, torch.ones_like(deviation))
