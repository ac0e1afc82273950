"""The training loop. It knows an algorithm only by the contract in ``plugin.py``."""

from __future__ import annotations

import dataclasses
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rl_plugins.data.collector import RolloutCollector
from rl_plugins.plugin import Plugin
from rl_plugins.runs.curve import draw_curve
from rl_plugins.runs.directory import RunDirectory
from rl_plugins.runs.evaluation import Evaluation, evaluate
from rl_plugins.runs.progress import ProgressDisplay
from rl_plugins.runs.settings import RunPlan

PASSING_EVALUATION_EPISODES = 5


class RunOutcome(Enum):
    """How a run ended."""

    FINISHED = "all steps were taken"
    INTERRUPTED = "stopped by Ctrl-C; the files hold everything up to then"
    FAILED = "an error ended it; the files hold everything up to then"


@dataclass(frozen=True)
class Run:
    """A run that has ended.

    Attributes
    ----------
    directory
        Its files.
    outcome
        How it ended.
    steps
        Environment steps that were taken, those before a resumption included.
    seconds
        Time that it took, that before a resumption included.
    evaluation
        The final one; None where the run was interrupted.
    """

    directory: Path
    outcome: RunOutcome
    steps: int
    seconds: float
    evaluation: Evaluation | None


class TrainingLoop:
    """Collect, update, log; evaluate and save on the way.

    Parameters
    ----------
    plan
        All settings of the run.
    plugin
        The agent.
    collector
        Steps its environments.
    generator
        The agent's and the collector's, which checkpoints save.
    directory
        Takes everything that is written.
    display
        Takes everything that is shown.
    """

    def __init__(
        self,
        plan: RunPlan,
        plugin: Plugin,
        collector: RolloutCollector,
        generator: torch.Generator,
        directory: RunDirectory,
        display: ProgressDisplay,
    ) -> None:
        self._plan, self._plugin, self._collector = plan, plugin, collector
        self._generator, self._directory, self._display = generator, directory, display
        self._steps = self._updates = 0
        self._stop = threading.Event()
        self._start = time.perf_counter()

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Go on where a checkpoint was made; the agent's own state is restored by the caller.

        Parameters
        ----------
        checkpoint
            From :func:`rl_plugins.runs.directory.load_checkpoint`.
        """
        self._steps, self._updates = checkpoint["steps"], checkpoint["updates"]
        self._generator.set_state(checkpoint["generator"])
        self._start -= checkpoint["seconds"]
        self._restart_episodes()

    def run(self) -> Run:
        """Train to the end, or to the first Ctrl-C; evaluate, and write down how it ended."""
        final = None
        try:
            with torch_threads(self._plan.run.threads), interrupt_as_request() as self._stop:
                self._loop()
                self._save()
                if not self._stop.is_set():
                    final = self._evaluate(self._plan.run.evaluation_episodes)
        except BaseException:
            # A second Ctrl-C, or an error: the rows that were logged stay.
            self._conclude(RunOutcome.FAILED, None)
            raise
        return self._conclude(RunOutcome.FINISHED if final else RunOutcome.INTERRUPTED, final)

    def _conclude(self, outcome: RunOutcome, final: Evaluation | None) -> Run:
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
        path, plan = self._directory.path, self._plan
        if self._steps:
            title = f"{plan.algorithm} on {plan.task}, seed {plan.run.seed}"
            draw_curve(path, path / "curve.png", title)
        return Run(path, outcome, self._steps, seconds, final)

    def _save(self) -> None:
        self._directory.save_checkpoint(
            {
                "agent": self._plugin.state_dict(),
                "generator": self._generator.get_state(),
                "steps": self._steps,
                "updates": self._updates,
                "seconds": time.perf_counter() - self._start,
            }
        )

    def _restart_episodes(self) -> None:
        """New episodes, from a seed that is this checkpoint's own. The states of environments
        cannot be saved: resumed and uninterrupted runs agree because both begin anew here."""
        sequence = np.random.SeedSequence([self._plan.run.seed, self._updates])
        self._collector.restart(int(sequence.generate_state(1)[0] % 2**31))

    def _loop(self) -> None:
        run = self._plan.run
        per_update = run.environments * run.rollout_length
        updates = math.ceil(run.total_steps / per_update)
        evaluate_after = _spread(updates, run.evaluations)
        save_after = _spread(updates, run.checkpoints)
        while self._steps < run.total_steps and not self._stop.is_set():
            # The last rollout is as short as total_steps asks.
            missing = math.ceil((run.total_steps - self._steps) / run.environments)
            self._update(min(run.rollout_length, missing))
            if self._steps >= run.total_steps:
                return
            if self._updates in evaluate_after:
                self._evaluate(min(PASSING_EVALUATION_EPISODES, run.evaluation_episodes))
            if self._updates in save_after and not self._stop.is_set():
                self._save()
                self._restart_episodes()

    def _update(self, length: int) -> None:
        started = time.perf_counter()
        rollout = self._collector.collect(length)
        collected = time.perf_counter()
        if not rollout.steps:
            return  # one step of one environment that was only reset
        report = self._plugin.update(rollout)
        updated = time.perf_counter()
        self._updates += 1
        self._steps += rollout.steps
        returns, lengths = rollout.episode_returns, rollout.episode_lengths
        speed = self._steps / (updated - self._start)
        episode_return = sum(returns) / len(returns) if returns else None
        before = {
            "update": self._updates,
            "steps": self._steps,
            "episodes": len(returns),
            "episode_return": episode_return,
            "episode_length": sum(lengths) / len(lengths) if lengths else None,
        }
        reported = {f.name: getattr(report, f.name) for f in dataclasses.fields(report)}
        after = {
            "seconds": updated - self._start,
            "collect_seconds": collected - started,
            "update_seconds": updated - collected,
            "steps_per_second": speed,
        }
        if clash := reported.keys() & (before.keys() | after.keys()):
            raise TypeError(
                f"{type(report).__name__} redefines columns of the training loop: {sorted(clash)}"
            )
        self._directory.log_progress({**before, **reported, **after})
        self._display.update(self._steps, episode_return, report.summary, speed)

    def _evaluate(self, episodes: int) -> Evaluation | None:
        run, task = self._plan.run, self._plan.task
        behave = partial(self._plugin.behaviour, explore=False)
        evaluation = evaluate(
            behave, task, episodes=episodes, seed=run.seed, backend=run.backend, stop=self._stop
        )
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


def _spread(updates: int, count: int) -> set[int]:
    """``count`` of the updates, evenly spaced, the last left out."""
    return {updates * k // (count + 1) for k in range(1, count + 1)}


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Within the block torch has a number of threads; then that of before.

    Parameters
    ----------
    count
        Number of threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def interrupt_as_request() -> Iterator[threading.Event]:
    """Within the block the first Ctrl-C sets the event, a second one raises KeyboardInterrupt.

    An exception in the middle of an update would leave a new policy beside an old critic, in the
    checkpoint too. Outside the main thread, where Python allows no signal
    handlers, the event is never set.
    """
    request = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def on_interrupt(number: int, frame: object) -> None:
        if request.is_set():
            raise KeyboardInterrupt
        request.set()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield request
    finally:
        signal.signal(signal.SIGINT, before)
