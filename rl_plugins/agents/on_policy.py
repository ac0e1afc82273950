"""The agent of the on-policy family: a step, and the critic and the normalisers that feed it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from rl_plugins.a2c import A2C, ACKTR, KFAC, NO_SEQUENCES, A2CSettings, ACKTRSettings
from rl_plugins.agents.actor_critic import ActorCritic, OnPolicyConfig
from rl_plugins.data import Rollout
from rl_plugins.npg import NPG
from rl_plugins.parts.natural_gradient import NaturalGradientSettings
from rl_plugins.parts.policy_step import PolicyStep
from rl_plugins.policies import Behaviour
from rl_plugins.ppo import PPO, PPOSettings
from rl_plugins.reports import StepReport
from rl_plugins.settings import part_of
from rl_plugins.trpo import TRPO, TRPOSettings

if TYPE_CHECKING:
    from gymnasium import Space


class OnPolicyAgent:
    """A policy that acts, learns advantages with a critic, and moves by an ``algorithm``.

    Parameters
    ----------
    actor_critic
        The policy, the critic, and the normalisers of what both see.
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
        """The agent for a task's spaces. Raises :class:`UsageError` for unsupported spaces."""
        actor_critic = ActorCritic(observation_space, action_space, config, generator)
        settings = part_of(config, cls.Algorithm.Settings)
        algorithm = cls.Algorithm(actor_critic.policy, generator=generator, **settings)
        return cls(actor_critic, algorithm, config)

    def behaviour(self, environments: int, *, explore: bool) -> Behaviour:
        """The policy in a number of environments: by draws, or by the mode of its distribution."""
        return self.actor_critic.behaviour(environments, explore=explore)

    def update(self, batch: Rollout) -> StepReport:
        """One iteration from a rollout: advantages, the step, the fit of the critic."""
        learning = self.actor_critic.learning_batch(batch)
        report = self.algorithm.step(
            learning.observations, learning.actions, learning.advantages, learning.mask
        )
        self.actor_critic.finish_update(learning)
        return replace(report, explained_variance=learning.explained_variance)

    def state_dict(self) -> dict[str, Any]:
        """All state but the generator's, which its owner saves."""
        state = self.algorithm.state_dict()
        del state["policy"]  # it is a part of the actor-critic
        regression = self.actor_critic.critic.regression.state_dict()
        return {**state, "agent": self.actor_critic.state_dict(), "regression": regression}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self.actor_critic.load_state_dict(state["agent"])
        self.actor_critic.critic.regression.load_state_dict(state["regression"])
        self.algorithm.load_state_dict({**state, "policy": self.policy.state_dict()})


@dataclass(frozen=True)
class NPGConfig(NaturalGradientSettings, OnPolicyConfig):
    """Settings of NPG and of the policy and the critic that the training loop builds for it."""


@dataclass(frozen=True)
class TRPOConfig(TRPOSettings, OnPolicyConfig):
    """Settings of TRPO and of the policy and the critic that the training loop builds for it."""


@dataclass(frozen=True)
class PPOConfig(PPOSettings, OnPolicyConfig):
    """Settings of PPO and of the policy and the critic that the training loop builds for it."""


@dataclass(frozen=True)
class A2CConfig(A2CSettings, OnPolicyConfig):
    """Settings of A2C and of the policy and the critic that the training loop builds for it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer == KFAC and self.memory_size:
            raise ValueError(f"a policy with a memory learns from sequences; {NO_SEQUENCES}")


@dataclass(frozen=True)
class ACKTRConfig(ACKTRSettings, A2CConfig):
    """Settings of ACKTR and of the policy and the critic that the training loop builds for it."""


class NPGAgent(OnPolicyAgent):
    """An agent that moves by :class:`rl_plugins.NPG`."""

    Algorithm, Config = NPG, NPGConfig


class TRPOAgent(OnPolicyAgent):
    """An agent that moves by :class:`rl_plugins.TRPO`."""

    Algorithm, Config = TRPO, TRPOConfig


class PPOAgent(OnPolicyAgent):
    """An agent that moves by :class:`rl_plugins.PPO`."""

    Algorithm, Config = PPO, PPOConfig


class A2CAgent(OnPolicyAgent):
    """An agent that moves by :class:`rl_plugins.A2C`."""

    Algorithm, Config = A2C, A2CConfig


class ACKTRAgent(OnPolicyAgent):
    """An agent that moves by :class:`rl_plugins.ACKTR`."""

    Algorithm, Config = ACKTR, ACKTRConfig
