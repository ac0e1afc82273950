"""A policy and a critic, and what they learn from: from a rollout to advantages and targets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import optree
import torch
from torch import Tensor, nn

from rl_plugins.agents.advantages import gae
from rl_plugins.critics import (
    AdamRegression,
    Critic,
    GaussNewtonRegression,
    Regression,
    explained_variance,
)
from rl_plugins.data import Rollout
from rl_plugins.policies import (
    POLICY_OUTPUT_GAIN,
    Behaviour,
    Features,
    Perception,
    RecurrentPolicy,
    Remembering,
    RewardNormaliser,
    Sampling,
    StochasticPolicy,
    feature_network,
    mlp,
)
from rl_plugins.settings import (
    Settings,
    require_between,
    require_least,
    require_one_of,
    require_sizes,
)

if TYPE_CHECKING:
    from gymnasium import Space


@dataclass(frozen=True)
class OnPolicyConfig(Settings):
    """Settings of the policy, the critic and the advantages."""

    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of the policy and of the critic."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Between the layers."""
    memory_size: int = 0
    """Width of the memory of a recurrent policy (a GRU); 0: no memory."""
    initial_log_std: float = -0.5
    """Initial log standard deviation of Gaussian policies; 0 explores too much for most tasks."""
    action_bounds: Literal["clip", "tanh"] = "clip"
    """How continuous actions are kept within the bounds of the task."""
    normalise_observations: bool = True
    """Standardise observations by running moments kept in the policy."""
    normalise_rewards: bool = False
    """Divide rewards by the running deviation of the discounted return. The critic standardises
    its targets either way."""
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
        super().__post_init__()
        require_one_of(self, "critic", "gauss-newton", "adam")
        require_one_of(self, "activation", "tanh", "relu")
        require_one_of(self, "action_bounds", "clip", "tanh")
        require_sizes(self, "hidden_sizes")
        require_between(self, 0, 1, "discount", "decay")
        require_between(self, -20, 5, "initial_log_std")
        require_least(self, 1, "critic_steps", "critic_cg_iterations", "critic_stride")
        require_least(self, 1, "critic_epochs", "critic_batch_size")
        require_least(self, 0, "critic_damping", "memory_size")
        require_least(self, 0, "critic_learning_rate", exclusive=True)


@dataclass(frozen=True)
class LearningBatch:
    """What an update learns from: B steps that are valid, or N sequences of T with a ``mask``.

    Advantages are standardised, ``targets`` (B,) of the critic are not; ``states`` (B, …) and
    ``memories`` (B, h) are the critic's inputs. ``already_seen`` says that the normaliser has taken
    these observations in.
    """

    observations: Any
    actions: Tensor
    advantages: Tensor
    mask: Tensor | None
    states: Any
    memories: Tensor | None
    targets: Tensor
    explained_variance: float
    already_seen: bool


class ActorCritic(nn.Module):
    """A policy and a critic that see observations through the same features."""

    def __init__(
        self,
        observation_space: Space[Any],
        action_space: Space[Any],
        config: OnPolicyConfig,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        # Here and not above: steps from one's own rollouts need no Gymnasium.
        from rl_plugins.policies.spaces import action_head, action_map, observation_features

        head = action_head(action_space, initial_log_std=config.initial_log_std)
        self.to_environment = action_map(action_space, bounds=config.action_bounds)
        features = observation_features(
            observation_space, normalise=config.normalise_observations, choices=head.choices
        )
        self.features = features
        self.policy: StochasticPolicy | RecurrentPolicy
        memory = config.memory_size
        if memory:
            encoder: nn.Identity | Perception = nn.Identity()
            inputs = features.width
            if features.images:
                inputs = config.hidden_sizes[-1] if config.hidden_sizes else memory
                encoder = _network(features, 0, inputs, 2**0.5, config, generator)  # type: ignore[assignment]
            cell = _gru_cell(inputs, memory, generator)
            output = mlp(
                memory, (), head.outputs, output_gain=POLICY_OUTPUT_GAIN, generator=generator
            )
            self.policy = RecurrentPolicy(features, encoder, cell, output, head)
        else:
            network = _network(features, 0, head.outputs, POLICY_OUTPUT_GAIN, config, generator)
            self.policy = StochasticPolicy(features, network, head)
        network = _network(features, memory, 1, 1.0, config, generator)
        self.critic = Critic(features, network, _regression(network, config, generator))
        self.reward_normaliser = (
            RewardNormaliser(config.discount) if config.normalise_rewards else None
        )
        self._discount, self._decay = config.discount, config.decay

    def behaviour(self, environments: int, *, explore: bool) -> Behaviour:
        """How the policy acts: by draws, or by the mode of its distribution."""
        if isinstance(self.policy, RecurrentPolicy):
            return Remembering(self.policy, environments, self.to_environment, explore=explore)
        return Sampling(self.policy, self.to_environment, explore=explore)

    @torch.no_grad()
    def learning_batch(self, rollout: Rollout) -> LearningBatch:
        """Advantages by GAE, and the λ-returns that the critic regresses on."""
        shape = rollout.rewards.shape
        valid = rollout.valid.flatten()
        keep: Tensor | slice = slice(None) if bool(valid.all()) else valid
        states = optree.tree_map(lambda leaf: leaf.flatten(0, 1), rollout.observations)
        memories = None if rollout.memories is None else rollout.memories.flatten(0, 1)
        # The first rollout primes the statistics before its update. The policy's mean is near 0
        # then, whatever it sees; every later rollout is judged by the function that collected it.
        normaliser = self.features.normaliser
        primes = normaliser is not None and not bool(normaliser.moments.count)
        kept = _rows(states, keep)
        if primes:
            self.features.update(kept)
        rewards = rollout.rewards
        if self.reward_normaliser is not None:
            self.reward_normaliser.update(rewards, rollout.starts, rollout.valid)
            rewards = self.reward_normaliser(rewards)
        values = self.critic(states, memories).view(shape)
        advantages = gae(
            rewards,
            values,
            rollout.next_values(self.critic, values),
            rollout.terminated,
            rollout.truncated,
            discount=self._discount,
            decay=self._decay,
        )
        targets = (advantages + values).flatten()[keep]
        batch = LearningBatch(
            observations=kept,
            actions=rollout.actions.flatten(0, 1)[keep],
            advantages=standardise(advantages.flatten()[keep]),
            mask=None,
            states=kept,
            memories=None if memories is None else memories[keep],
            targets=targets,
            explained_variance=explained_variance(values.flatten()[keep], targets),
            already_seen=primes,
        )
        return batch if rollout.memories is None else _in_sequences(batch, rollout)

    def finish_update(self, batch: LearningBatch) -> None:
        """Fit the critic; then, and only then, move the normaliser on to the new observations.

        The layers that read it are changed so that policy and critic stay the functions they are:
        otherwise the move would take the policy further than the bound on its KL allows.
        """
        self.critic.fit(batch.states, batch.targets, batch.memories)
        if not batch.already_seen:
            readers = [*self.policy.readers(), *self.critic.readers()]
            self.features.update(batch.states, readers)


def standardise(advantages: Tensor) -> Tensor:
    """Zero mean and unit standard deviation; only centred where all are equal."""
    centred = advantages - advantages.mean()
    deviation = centred.double().square().mean().sqrt().to(centred.dtype)
    # Below rounding of the mean the advantages are equal: their deviation is that rounding.
    noise = 4 * torch.finfo(centred.dtype).eps * advantages.abs().amax()
    return centred / torch.where(deviation > noise, deviation, torch.ones_like(deviation))


def _in_sequences(batch: LearningBatch, rollout: Rollout) -> LearningBatch:
    """The same for a recurrent policy: a sequence (T,) an environment, resets masked out."""
    assert rollout.memories is not None
    advantages = torch.zeros(rollout.rewards.shape)
    advantages[rollout.valid] = batch.advantages
    return replace(
        batch,
        observations={
            "observations": optree.tree_map(
                lambda leaf: leaf.transpose(0, 1), rollout.observations
            ),
            "starts": rollout.starts.T,
            "memory": rollout.memories[0],
        },
        actions=rollout.actions.transpose(0, 1),
        advantages=advantages.T,
        mask=rollout.valid.T,
    )


def _rows(states: Any, keep: Tensor | slice) -> Any:
    return optree.tree_map(lambda leaf: leaf[keep], states)


def _network(
    features: Features,
    extra: int,
    outputs: int,
    gain: float,
    config: OnPolicyConfig,
    generator: torch.Generator,
) -> nn.Sequential | Perception:
    """A network that reads features, and ``extra`` numbers behind their vector."""
    return feature_network(
        features.width + extra,
        features.images,
        config.hidden_sizes,
        outputs,
        output_gain=gain,
        generator=generator,
        activation=nn.Tanh if config.activation == "tanh" else nn.ReLU,
    )


def _gru_cell(inputs: int, size: int, generator: torch.Generator) -> nn.GRUCell:
    cell: nn.GRUCell = nn.utils.skip_init(nn.GRUCell, inputs, size)  # type: ignore[no-untyped-call]
    for weight in (cell.weight_ih, cell.weight_hh):
        for gate in weight.chunk(3):
            nn.init.orthogonal_(gate, generator=generator)
    nn.init.zeros_(cell.bias_ih)
    nn.init.zeros_(cell.bias_hh)
    return cell


def _regression(
    network: nn.Module, config: OnPolicyConfig, generator: torch.Generator
) -> Regression:
    if config.critic == "adam":
        return AdamRegression(
            network,
            epochs=config.critic_epochs,
            batch_size=config.critic_batch_size,
            learning_rate=config.critic_learning_rate,
            generator=generator,
        )
    return GaussNewtonRegression(
        config.critic_steps, config.critic_cg_iterations, config.critic_damping,
        config.critic_stride,
    )  # fmt: skip
