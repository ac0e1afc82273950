"""A run: its settings, its loop, its directory, its evaluation."""

from rl_plugins.runs.curve import draw_curves
from rl_plugins.runs.evaluation import Evaluation, evaluate
from rl_plugins.runs.loop import Run, RunOutcome
from rl_plugins.runs.settings import RunPlan, RunSettings, resolve, tuned_settings
from rl_plugins.runs.training import evaluate_run, export_run, resume, train

__all__ = [
    "Evaluation",
    "Run",
    "RunOutcome",
    "RunPlan",
    "RunSettings",
    "draw_curves",
    "evaluate",
    "evaluate_run",
    "export_run",
    "resolve",
    "resume",
    "train",
    "tuned_settings",
]
