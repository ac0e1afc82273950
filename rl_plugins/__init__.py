"""Reinforcement-learning algorithms from natgrad's primitives, each a thin file."""

from rl_plugins.advantages import gae
from rl_plugins.errors import UsageError
from rl_plugins.reports import StepReport
from rl_plugins.runs import Run, evaluate_run, train
from rl_plugins.trpo import TRPO, TRPOConfig

__all__ = [
    "TRPO",
    "Run",
    "StepReport",
    "TRPOConfig",
    "UsageError",
    "evaluate_run",
    "gae",
    "train",
]
