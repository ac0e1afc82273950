"""A run: its settings, its loop, its directory, its evaluation."""

from rl_plugins.runs.curve import draw_curves
from rl_plugins.runs.evaluation import Evaluation, evaluate
from rl_plugins.runs.loop import Outcome, Run
from rl_plugins.runs.settings import RunSettings, Settings, resolve, tuned_settings
from rl_plugins.runs.training import evaluate_run, export_run, resume, train

__all__ = [
    "Evaluation",
    "Outcome",
    "Run",
    "RunSettings",
    "Settings",
    "draw_curves",
    "evaluate",
    "evaluate_run",
    "export_run",
    "resolve",
    "resume",
    "train",
    "tuned_settings",
]
