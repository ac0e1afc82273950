"""The training loop. It knows an algorithm only by the contract in ``plugin.py``."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import torch

from rl_plugins.data.collector import RolloutCollector
from rl_plugins.data.task import Task
from rl_plugins.plugin import Plugin
from rl_plugins.policies.space_records import spaces_record
from rl_plugins.runs.agent import Agent
from rl_plugins.runs.callbacks import Callbacks, Moment
from rl_plugins.runs.checkpoint import BEST, INTERRUPTION, LAST
from rl_plugins.runs.curve import draw_curve
from rl_plugins.runs.directory import RunDirectory
from rl_plugins.runs.evaluation import Evaluation, evaluate
from rl_plugins.runs.interruption import Request, signals_as_request
from rl_plugins.runs.progress import ProgressDisplay
from rl_plugins.runs.run import Run, RunOutcome
from rl_plugins.runs.schedule import Schedule
from rl_plugins.runs.settings import RunPlan
from rl_plugins.runs.threads import torch_threads

PASSING_EVALUATION_EPISODES = 5


class TrainingLoop:
    """Collect, update, log; evaluate and save on the way.

    Parameters
    ----------
    plan
        All settings of the run.
    plugin
        The algorithm.
    task
        What evaluations play.
    collector
        Steps the copies that are trained on.
    agent
        The policy as others see it.
    generator
        The agent's and the collector's, which checkpoints save.
    directory
        Takes everything that is written.
    display
        Takes everything that is shown.
    schedule
        When to evaluate and to save.
    callbacks
        Called on the way.
    configs
        Digests of the settings that go with the checkpoints.
    """

    def __init__(
        self,
        plan: RunPlan,
        plugin: Plugin,
        task: Task,
        collector: RolloutCollector,
        agent: Agent,
        generator: torch.Generator,
        directory: RunDirectory,
        display: ProgressDisplay,
        *,
        schedule: Schedule,
        callbacks: Callbacks,
        configs: Sequence[str] = (),
    ) -> None:
        self._plan, self._plugin, self._task, self._collector = plan, plugin, task, collector
        self._agent, self._generator = agent, generator
        self._directory, self._display = directory, display
        self._schedule, self._callbacks, self._configs = schedule, callbacks, list(configs)
        self._spaces = spaces_record(agent.observation_space, agent.action_space)
        self._steps = self._updates = 0
        self._best = math.nan
        self._row: Mapping[str, Any] = {}
        self._evaluation: Evaluation | None = None
        self._request = Request()
        self._start = time.perf_counter()

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Go on where a checkpoint was made; the agent's own state is restored by the caller.

        Parameters
        ----------
        checkpoint
            From :func:`rl_plugins.runs.checkpoint.load_checkpoint`.
        """
        self._steps, self._updates = checkpoint["steps"], checkpoint["updates"]
        self._best = checkpoint["best"]
        self._generator.set_state(checkpoint["generator"])
        self._start -= checkpoint["seconds"]
        self._restart_episodes()

    def save(self, name: str = LAST) -> None:
        """Write a checkpoint.

        Parameters
        ----------
        name
            Its file.

        Raises
        ------
        ExperienceError
            Where the agent's state is no longer finite; the last checkpoint stays.
        """
        state = {
            "agent": self._plugin.state_dict(),
            "generator": self._generator.get_state(),
            "steps": self._steps,
            "updates": self._updates,
            "seconds": time.perf_counter() - self._start,
            "evaluations": self._directory.evaluations,
            "best": self._best,
            "spaces": self._spaces,
            "configs": self._configs,
        }
        self._directory.save_checkpoint(state, name)

    def run(self) -> Run:
        """Train to the end, to a rule that says stop, or to a signal; write down how it ended."""
        final = None
        try:
            with torch_threads(self._plan.run.threads), signals_as_request() as self._request:
                self._loop()
                if self._request.is_set():
                    self.save(INTERRUPTION)
                else:
                    self.save()
                    final = self._evaluate(self._plan.run.evaluation_episodes)
        except BaseException:
            # The rows that were logged stay. A full disk does not hide what came before it.
            with suppress(OSError):
                self._conclude(RunOutcome.FAILED, None)
            raise
        ended = RunOutcome.STOPPED if self._callbacks.reason else RunOutcome.FINISHED
        return self._conclude(RunOutcome.INTERRUPTED if self._request.is_set() else ended, final)

    def _conclude(self, outcome: RunOutcome, final: Evaluation | None) -> Run:
        seconds = time.perf_counter() - self._start
        self._directory.write_json(
            "outcome.json",
            {
                "outcome": outcome.name.lower(),
                "reason": self._callbacks.reason,
                "steps": self._steps,
                "seconds": seconds,
                "mean_return": final.mean if final else None,
                "episodes": len(final.returns) if final else 0,
            },
        )
        path, place, plan = self._directory.path, self._directory.place, self._plan
        if self._steps:
            title = f"{plan.algorithm} on {plan.task}, seed {plan.run.seed}"
            try:
                draw_curve(place, place / "curve.png", title)
            except ValueError as error:  # the run is in order without its picture
                self._display.line(f"no curve.png: {error}")
        return Run(
            path,
            outcome,
            self._steps,
            seconds,
            final,
            self._agent,
            self._played,
            self._callbacks.reason,
            self._request.number,
        )

    def _restart_episodes(self) -> None:  # from a seed that a resumed run has too
        sequence = np.random.SeedSequence([self._plan.run.seed, self._updates])
        self._collector.restart(int(sequence.generate_state(1)[0] % 2**31))

    def _loop(self) -> None:
        run = self._plan.run
        while self._steps < run.total_steps and not self._ended():
            # The last rollout is as short as total_steps asks.
            missing = math.ceil((run.total_steps - self._steps) / run.environments)
            self._update(min(run.rollout_length, missing))
            self._callbacks.tell("on_update", self._moment)
            if self._steps >= run.total_steps or self._ended():
                return
            if self._schedule.evaluates_after(self._updates):
                self._evaluate(min(PASSING_EVALUATION_EPISODES, run.evaluation_episodes))
            if self._schedule.saves_after(self._updates) and not self._ended():
                self.save()
                self._restart_episodes()

    def _ended(self) -> bool:
        return self._request.is_set() or bool(self._callbacks.reason)

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
        self._row = {**before, **reported, **after}
        self._directory.log_progress(self._row)
        self._display.update(self._steps, episode_return, report.summary, speed)

    def _played(self, episodes: int) -> Evaluation:
        run = self._plan.run
        played = evaluate(
            partial(self._plugin.behaviour, explore=False),
            self._task,
            episodes=episodes,
            seed=run.seed,
            backend=run.backend,
            step_limit=run.evaluation_step_limit,
            patience=run.worker_timeout,
            stop=self._request,
            progress=self._display.evaluating,
        )
        if played is None:
            raise KeyboardInterrupt
        return played

    def _evaluate(self, episodes: int) -> Evaluation | None:
        if not episodes:
            return None
        try:
            evaluation = self._played(episodes)
        except KeyboardInterrupt:
            if self._request.is_set():
                return None
            raise
        self._directory.log_evaluation(
            {
                "steps": self._steps,
                "episodes": episodes,
                "mean_return": evaluation.mean,
                "deviation": evaluation.deviation,
                "lowest": min(evaluation.returns),
                "highest": max(evaluation.returns),
                "cut": evaluation.cut,
                "seconds": time.perf_counter() - self._start,
            }
        )
        self._display.line(f"{self._steps:>9,} steps  evaluation {evaluation}")
        self._evaluation = evaluation
        if not evaluation.mean <= self._best:  # the first one too, where it is NaN
            self._best = evaluation.mean
            self.save(BEST)
        if self._task.vector is not None:
            self._restart_episodes()  # it has played the evaluation
        self._callbacks.tell("on_evaluation", self._moment)
        return evaluation

    def _moment(self) -> Moment:
        return Moment(
            self._steps,
            self._plan.run.total_steps,
            time.perf_counter() - self._start,
            self._row,
            self._evaluation,
            self._best,
            self._agent,
            self._directory.place,
        )
