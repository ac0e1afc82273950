"""What turns a step into something that trains: critics, advantages, replay.

The entry points of the group ``rl_plugins`` name the classes here.
"""

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
    OnPolicyAgent,
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
