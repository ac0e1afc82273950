"""A run: its settings, its loop, its directory, its evaluation."""

from rl_plugins.runs.evaluation import Evaluation, evaluate
from rl_plugins.runs.settings import RunSettings, Settings, resolve, tuned_settings
from rl_plugins.runs.training import Outcome, Run, evaluate_run, train

__all__ = [
    "Evaluation",
    "Outcome",
    "Run",
    "RunSettings",
    "Settings",
    "evaluate",
    "evaluate_run",
    "resolve",
    "train",
    "tuned_settings",
]
