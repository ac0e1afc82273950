"""The training loop. It knows an algorithm only by the contract in ``plugin.py``."""

from __future__ import annotations

import dataclasses
import math
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from gymnasium.vector import VectorEnv
from rich.console import Console

import natgrad
from rl_plugins.data.collector import RolloutCollector
from rl_plugins.data.environments import Backend, make_environments
from rl_plugins.errors import UsageError
from rl_plugins.plugin import Plugin, find_plugin
from rl_plugins.runs.curve import draw_curve
from rl_plugins.runs.directory import RunDirectory, load_checkpoint, read_json
from rl_plugins.runs.evaluation import Evaluation, evaluate
from rl_plugins.runs.interrupt import interrupt_as_request
from rl_plugins.runs.progress import ProgressDisplay
from rl_plugins.runs.settings import Settings, resolve

PASSING_EVALUATION_EPISODES = 5


class Outcome(Enum):
    """How a run ended."""

    FINISHED = "all steps were taken"
    INTERRUPTED = "stopped by Ctrl-C; the files hold everything up to then"
    FAILED = "an error ended it; the files hold everything up to then"


@dataclass(frozen=True)
class Run:
    """A run that has ended; ``evaluation`` is the final one, None where it was interrupted."""

    directory: Path
    outcome: Outcome
    steps: int
    seconds: float
    evaluation: Evaluation | None


def train(
    algorithm: str,
    task: str,
    *,
    run_dir: Path | str | None = None,
    console: Console | None = None,
    **overrides: Any,
) -> Run:
    """Train ``algorithm`` on ``task`` into a run directory.

    ``overrides`` are fields of :class:`RunSettings` (``total_steps``, ``seed``, …) and of the
    algorithm's ``Config`` (``max_kl``, …); the rest comes from the tuned settings of the task, then
    from the defaults. ``run_dir`` defaults to a new directory below ``runs``. ``console`` shows
    progress; None is silent. Ctrl-C ends the run early and leaves a valid directory.

    Two runs with the same settings on one machine write the same ``progress.csv`` except for the
    columns whose names contain ``second``.

    Raises :class:`UsageError` for an unknown algorithm, task or setting, an unsupported space, or
    a run directory that is not empty; :class:`ExperienceError` where an environment returns a NaN
    or an infinity, after writing down that the run failed.
    """
    plugin_class = find_plugin(algorithm)
    settings = resolve(algorithm, plugin_class, task, overrides)
    console = console or Console(quiet=True)
    generator = torch.Generator().manual_seed(settings.run.seed)
    run = settings.run
    environments = make_environments(
        task, run.environments, backend=Backend[run.backend.upper()], seed=run.seed
    )
    try:
        plugin = _build(plugin_class, environments, settings, generator)
        behaviour = plugin.behaviour(run.environments, explore=True)
        collector = RolloutCollector(environments, behaviour, seed=run.seed, generator=generator)
        path = Path(run_dir) if run_dir is not None else _new_directory(settings)
        with (
            _torch_threads(settings.run.threads),
            RunDirectory(path, _describe(settings)) as directory,
            ProgressDisplay(console, settings.run.total_steps) as display,
        ):
            display.line(_headline(settings))
            return _Training(settings, plugin, collector, directory, display).run()
    finally:
        environments.close()


class _Training:
    def __init__(
        self,
        settings: Settings,
        plugin: Plugin,
        collector: RolloutCollector,
        directory: RunDirectory,
        display: ProgressDisplay,
    ) -> None:
        self._settings, self._plugin, self._collector = settings, plugin, collector
        self._directory, self._display = directory, display
        self._steps = 0
        self._stop = threading.Event()
        self._start = time.perf_counter()

    def run(self) -> Run:
        final = None
        try:
            with interrupt_as_request() as self._stop:
                self._loop()
                self._save()
                if not self._stop.is_set():
                    final = self._evaluate(self._settings.run.evaluation_episodes)
        except BaseException:
            # A second Ctrl-C, or an error: what was logged stays, and says that the run failed.
            self._conclude(Outcome.FAILED, None)
            raise
        return self._conclude(Outcome.FINISHED if final else Outcome.INTERRUPTED, final)

    def _conclude(self, outcome: Outcome, final: Evaluation | None) -> Run:
        seconds = time.perf_counter() - self._start
        self._directory.write_json(
            "outcome.json",
            {
                "outcome": outcome.name.lower(),
                "steps": self._steps,
                "seconds": seconds,
                "mean_return": final.mean if final else None,
                "episodes": len(final.returns) if final else 0,
            },
        )
        path, settings = self._directory.path, self._settings
        if self._steps:
            title = f"{settings.algorithm} on {settings.task}, seed {settings.run.seed}"
            draw_curve(path, path / "curve.png", title)
        return Run(path, outcome, self._steps, seconds, final)

    def _save(self) -> None:
        self._directory.save_checkpoint({"agent": self._plugin.state_dict(), "steps": self._steps})

    def _loop(self) -> None:
        run = self._settings.run
        per_update = run.environments * run.rollout_length
        updates = math.ceil(run.total_steps / per_update)
        evaluate_after = {
            updates * k // (run.evaluations + 1) for k in range(1, run.evaluations + 1)
        }
        for update in range(1, updates + 1):
            if self._stop.is_set():
                return
            # The last rollout is as short as total_steps asks.
            missing = math.ceil((run.total_steps - self._steps) / run.environments)
            self._update(update, min(run.rollout_length, missing))
            if update in evaluate_after and update < updates:
                self._save()
                self._evaluate(min(PASSING_EVALUATION_EPISODES, run.evaluation_episodes))

    def _update(self, update: int, length: int) -> None:
        started = time.perf_counter()
        rollout = self._collector.collect(length)
        collected = time.perf_counter()
        report = self._plugin.update(rollout)
        updated = time.perf_counter()
        self._steps += rollout.steps
        returns, lengths = rollout.episode_returns, rollout.episode_lengths
        speed = self._steps / (updated - self._start)
        episode_return = sum(returns) / len(returns) if returns else None
        self._directory.log_progress(
            {
                "update": update,
                "steps": self._steps,
                "episodes": len(returns),
                "episode_return": episode_return,
                "episode_length": sum(lengths) / len(lengths) if lengths else None,
                **{f.name: getattr(report, f.name) for f in dataclasses.fields(report)},
                "seconds": updated - self._start,
                "collect_seconds": collected - started,
                "update_seconds": updated - collected,
                "steps_per_second": speed,
            }
        )
        self._display.update(self._steps, episode_return, report.summary, speed)

    def _evaluate(self, episodes: int) -> Evaluation | None:
        run, task = self._settings.run, self._settings.task
        evaluation = evaluate(
            partial(self._plugin.behaviour, explore=False), task,
            episodes=episodes, seed=run.seed, backend=Backend[run.backend.upper()],
            stop=self._stop,
        )  # fmt: skip
        if evaluation is None:
            return None
        self._directory.log_evaluation(
            {
                "steps": self._steps,
                "episodes": episodes,
                "mean_return": evaluation.mean,
                "deviation": evaluation.deviation,
                "lowest": min(evaluation.returns),
                "highest": max(evaluation.returns),
                "seconds": time.perf_counter() - self._start,
            }
        )
        self._display.line(
            f"{self._steps:>9,} steps  evaluation {evaluation.mean:,.1f} ± "
            f"{evaluation.deviation:,.1f} over {episodes} episodes"
        )
        return evaluation


def evaluate_run(run_dir: Path | str, *, episodes: int = 20) -> Evaluation:
    """Evaluate the last checkpoint of a run. Raises :class:`UsageError` where there is none."""
    path = Path(run_dir)
    config = read_json(path, "config.json")
    if episodes < 1:
        raise UsageError(f"episodes must be at least 1, got {episodes}")
    try:
        plugin_class = find_plugin(config["algorithm"])
        overrides = {**config["run"], **config["config"]}
        settings = resolve(config["algorithm"], plugin_class, config["task"], overrides)
    except (KeyError, TypeError) as error:
        raise UsageError(f"{path / 'config.json'} is damaged: it holds no run") from error
    environments = make_environments(
        settings.task, 1, backend=Backend[settings.run.backend.upper()]
    )
    plugin = _build(plugin_class, environments, settings, torch.Generator())
    environments.close()
    try:
        plugin.load_state_dict(load_checkpoint(path)["agent"])
    except (RuntimeError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path / 'checkpoint.pt'} does not fit config.json: it is of another run"
        ) from error
    with _torch_threads(settings.run.threads):
        evaluation = evaluate(
            partial(plugin.behaviour, explore=False), settings.task,
            episodes=episodes, seed=settings.run.seed,
            backend=Backend[settings.run.backend.upper()],
        )  # fmt: skip
    assert evaluation is not None  # nothing could stop it
    return evaluation


def _build(
    plugin_class: type[Plugin],
    environments: VectorEnv,
    settings: Settings,
    generator: torch.Generator,
) -> Plugin:
    return plugin_class.build(
        environments.single_observation_space,
        environments.single_action_space,
        settings.config,
        generator,
    )


def _describe(settings: Settings) -> dict[str, Any]:
    return {
        "algorithm": settings.algorithm,
        "task": settings.task,
        "tuned": settings.tuned,
        "run": dataclasses.asdict(settings.run),
        "config": dataclasses.asdict(settings.config),
        "versions": {
            "natgrad": natgrad.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "gymnasium")},
        },
    }


def _headline(settings: Settings) -> str:
    source = "tuned settings" if settings.tuned else "default settings, none tuned for this task"
    return (
        f"{settings.algorithm} on {settings.task}, seed {settings.run.seed}, "
        f"{settings.run.total_steps:,} steps ({source})"
    )


def _new_directory(settings: Settings) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / (
        f"{settings.algorithm}-{settings.task.replace('/', '-')}-seed{settings.run.seed}-{stamp}"
    )


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
