"""The agent of the on-policy family: a step, and the critic and the normalisers that feed it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import optree
import torch
from torch import Tensor, nn

from rl_plugins.agents.networks import OnPolicyConfig, build_networks
from rl_plugins.critics import explained_variance
from rl_plugins.data import LearningBatch, Rollout, gae, standardise
from rl_plugins.parts.surrogate import PolicyStep
from rl_plugins.policies import (
    Behaviour,
    RecurrentPolicy,
    Remembering,
    RewardNormaliser,
    Sampling,
)
from rl_plugins.reports import StepReport
from rl_plugins.settings import part_of

if TYPE_CHECKING:
    from gymnasium import Space


class ActorCritic(nn.Module):
    """A policy and a critic that see observations through the same features.

    Parameters
    ----------
    observation_space, action_space
        The spaces of one environment.
    config
        Settings of both, and of the advantages.
    generator
        Draws the initial weights, and the minibatches of a critic that is fitted by Adam.

    Raises
    ------
    UsageError
        For unsupported spaces.
    """

    def __init__(
        self,
        observation_space: Space[Any],
        action_space: Space[Any],
        config: OnPolicyConfig,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        built = build_networks(observation_space, action_space, config, generator)
        # In this order: checkpoints list parameters and buffers as they were registered.
        self.features = built.policy.features
        self.policy, self.critic = built.policy, built.critic
        self.to_environment = built.to_environment
        self.reward_normaliser = (
            RewardNormaliser(config.discount) if config.normalise_rewards else None
        )
        self._discount, self._decay = config.discount, config.decay

    def behaviour(self, environments: int, *, explore: bool) -> Behaviour:
        """How the policy acts.

        Parameters
        ----------
        environments
            Their number.
        explore
            By draws; False: by the mode of its distribution.
        """
        if isinstance(self.policy, RecurrentPolicy):
            return Remembering(self.policy, environments, self.to_environment, explore=explore)
        return Sampling(self.policy, self.to_environment, explore=explore)

    @torch.no_grad()
    def learning_batch(self, rollout: Rollout) -> LearningBatch:
        """Advantages by GAE, and the λ-returns that the critic regresses on.

        Parameters
        ----------
        rollout
            Collected with the policy as it is now.
        """
        shape = rollout.rewards.shape
        valid = rollout.valid.flatten()
        keep: Tensor | slice = slice(None) if bool(valid.all()) else valid
        states = optree.tree_map(lambda leaf: leaf.flatten(0, 1), rollout.observations)
        memories = None if rollout.memories is None else rollout.memories.flatten(0, 1)
        # The first rollout primes the statistics before its update. The policy's mean is near 0
        # then for any observation. Later rollouts use the statistics they were collected with.
        normaliser = self.features.normaliser
        primes = normaliser is not None and not bool(normaliser.moments.count)
        kept = optree.tree_map(lambda leaf: leaf[keep], states)
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
            critic_loss=float((values.flatten()[keep] - targets).square().mean()),
            already_seen=primes,
        )
        return batch if rollout.memories is None else batch.in_sequences(rollout)

    def finish_update(self, batch: LearningBatch) -> None:
        """Fit the critic; then, and only then, move the normaliser on to the new observations.

        The layers that read it are changed so that policy and critic stay the functions they are:
        otherwise the move would take the policy further than the bound on its KL allows.

        Parameters
        ----------
        batch
            From :meth:`learning_batch`, after the policy's step.
        """
        self.critic.fit(batch.states, batch.targets, batch.memories)
        if not batch.already_seen:
            readers = [*self.policy.readers(), *self.critic.readers()]
            self.features.update(batch.states, readers)


class OnPolicyAgent:
    """A policy that acts, learns advantages with a critic, and moves by an ``algorithm``.

    Parameters
    ----------
    actor_critic
        The policy, the critic, and the normalisers of their observations.
    algorithm
        How the policy moves, given states, actions and advantages.
    config
        The settings that both were made from.
    """

    Algorithm: ClassVar[type[PolicyStep[Any]]]
    Config: ClassVar[type[OnPolicyConfig]]

    def __init__(
        self, actor_critic: ActorCritic, algorithm: PolicyStep[Any], config: OnPolicyConfig
    ) -> None:
        self.actor_critic, self.algorithm, self.config = actor_critic, algorithm, config
        self.policy = actor_critic.policy

    @classmethod
    def build(
        cls,
        observation_space: Space[Any],
        action_space: Space[Any],
        config: OnPolicyConfig,
        generator: torch.Generator,
    ) -> OnPolicyAgent:
        """The agent for a task's spaces, untrained.

        Parameters
        ----------
        observation_space, action_space
            The spaces of one environment.
        config
            All settings, those of the algorithm included.
        generator
            Source of all randomness; the caller saves it.

        Raises
        ------
        UsageError
            For unsupported spaces.
        """
        actor_critic = ActorCritic(observation_space, action_space, config, generator)
        settings = part_of(config, cls.Algorithm.Settings)
        algorithm = cls.Algorithm(actor_critic.policy, generator=generator, **settings)
        return cls(actor_critic, algorithm, config)

    def behaviour(self, environments: int, *, explore: bool) -> Behaviour:
        """How the policy acts: see :meth:`ActorCritic.behaviour`.

        Parameters
        ----------
        environments
            Their number.
        explore
            By draws; False: by the mode of its distribution.
        """
        return self.actor_critic.behaviour(environments, explore=explore)

    def update(self, batch: Rollout) -> StepReport:
        """One iteration: advantages, the step of the policy, the fit of the critic.

        Parameters
        ----------
        batch
            Collected with the policy as it is now.
        """
        learning = self.actor_critic.learning_batch(batch)
        report = self.algorithm.step(
            learning.observations, learning.actions, learning.advantages, learning.mask
        )
        self.actor_critic.finish_update(learning)
        return replace(
            report,
            explained_variance=learning.explained_variance,
            critic_loss=learning.critic_loss,
        )

    def state_dict(self) -> dict[str, Any]:
        """All state but the generator's, which its owner saves."""
        state = self.algorithm.state_dict()
        del state["policy"]  # it is a part of the actor-critic
        regression = self.actor_critic.critic.regression.state_dict()
        return {**state, "agent": self.actor_critic.state_dict(), "regression": regression}

    def start_from(self, state: dict[str, Any]) -> None:
        """Take the policy, the critic and the statistics of another run, whose algorithm may be
        another one of the family.

        Parameters
        ----------
        state
            From :meth:`state_dict`.
        """
        self.actor_critic.load_state_dict(state["agent"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state.

        Parameters
        ----------
        state
            From :meth:`state_dict`.
        """
        self.actor_critic.load_state_dict(state["agent"])
        self.actor_critic.critic.regression.load_state_dict(state["regression"])
        self.algorithm.load_state_dict({**state, "policy": self.policy.state_dict()})
