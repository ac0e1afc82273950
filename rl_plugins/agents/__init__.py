"""Agents: a step with the critic and advantages, or the replay buffer, that it trains with.

The entry points of the group ``rl_plugins`` name the classes here.
"""

from rl_plugins.agents.actor_critic import OnPolicyAgent
from rl_plugins.agents.off_policy import (
    DDPGAgent,
    DDPGConfig,
    OffPolicyAgent,
    TD3Agent,
    TD3Config,
)
from rl_plugins.agents.on_policy import (
    A2CAgent,
    A2CConfig,
    ACKTRAgent,
    ACKTRConfig,
    NPGAgent,
    NPGConfig,
    PPOAgent,
    PPOConfig,
    TRPOAgent,
    TRPOConfig,
)

__all__ = [
    "A2CAgent",
    "A2CConfig",
    "ACKTRAgent",
    "ACKTRConfig",
    "DDPGAgent",
    "DDPGConfig",
    "NPGAgent",
    "NPGConfig",
    "OffPolicyAgent",
    "OnPolicyAgent",
    "PPOAgent",
    "PPOConfig",
    "TD3Agent",
    "TD3Config",
    "TRPOAgent",
    "TRPOConfig",
]
