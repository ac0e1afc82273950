"""The agents of the on-policy family: each is a step with its settings, a policy and a critic."""

from __future__ import annotations

from dataclasses import dataclass

from rl_plugins.a2c import A2C, ACKTR, KFAC, NO_SEQUENCES, A2CSettings, ACKTRSettings
from rl_plugins.agents.actor_critic import OnPolicyAgent
from rl_plugins.agents.networks import OnPolicyConfig
from rl_plugins.npg import NPG
from rl_plugins.parts.natural_gradient import NaturalGradientSettings
from rl_plugins.ppo import PPO, PPOSettings
from rl_plugins.trpo import TRPO, TRPOSettings


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
