"""A run: its settings, its loop, its directory, its evaluation."""

from rl_plugins.runs.agent import Agent
from rl_plugins.runs.callbacks import Callback, Moment
from rl_plugins.runs.curve import draw_curves
from rl_plugins.runs.evaluation import Evaluation, evaluate
from rl_plugins.runs.loading import evaluate_run, export_run, load
from rl_plugins.runs.resumption import resume
from rl_plugins.runs.run import Run, RunOutcome
from rl_plugins.runs.settings import RunPlan, RunSettings, resolve, tuned_settings
from rl_plugins.runs.training import train

__all__ = [
    "Agent",
    "Callback",
    "Evaluation",
    "Moment",
    "Run",
    "RunOutcome",
    "RunPlan",
    "RunSettings",
    "draw_curves",
    "evaluate",
    "evaluate_run",
    "export_run",
    "load",
    "resolve",
    "resume",
    "train",
    "tuned_settings",
]
