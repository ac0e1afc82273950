"""Reinforcement-learning algorithms from natgrad's primitives, each a thin file.

``train``, ``resume``, ``load`` and what belongs to them need Gymnasium, and are loaded when they
are first used: steps from one's own rollouts need none of it.
"""

from typing import TYPE_CHECKING, Any

from rl_plugins.a2c import A2C, ACKTR
from rl_plugins.agents import (
    A2CConfig,
    ACKTRConfig,
    DDPGConfig,
    NPGConfig,
    PPOConfig,
    TD3Config,
    TRPOConfig,
)
from rl_plugins.data import gae
from rl_plugins.ddpg import DDPG
from rl_plugins.errors import UsageError
from rl_plugins.npg import NPG
from rl_plugins.ppo import PPO
from rl_plugins.reports import StepReport, StepStatus
from rl_plugins.td3 import TD3
from rl_plugins.trpo import TRPO

if TYPE_CHECKING:
    from rl_plugins.runs import Agent, Callback, Run, evaluate_run, load, resume, train

__all__ = [
    "A2C",
    "ACKTR",
    "DDPG",
    "NPG",
    "PPO",
    "TD3",
    "TRPO",
    "A2CConfig",
    "ACKTRConfig",
    "Agent",
    "Callback",
    "DDPGConfig",
    "NPGConfig",
    "PPOConfig",
    "Run",
    "StepReport",
    "StepStatus",
    "TD3Config",
    "TRPOConfig",
    "UsageError",
    "evaluate_run",
    "gae",
    "load",
    "resume",
    "train",
]

_OF_RUNS = ("Agent", "Callback", "Run", "evaluate_run", "load", "resume", "train")


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name in _OF_RUNS:
        from rl_plugins import runs

        return getattr(runs, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
