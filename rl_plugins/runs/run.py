"""What a run leaves to its caller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from rl_plugins.errors import UsageError
from rl_plugins.runs.agent import Agent
from rl_plugins.runs.evaluation import Evaluation


class RunOutcome(Enum):
    """How a run ended."""

    FINISHED = "all steps were taken"
    STOPPED = "a rule or a callback ended it; everything is in order"
    INTERRUPTED = "stopped by a signal; the files hold everything up to then"
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
        The final one; None where the run was interrupted, and where none was asked for.
    policy
        What it learnt: ``run.policy.act(observation)``.
    play
        A number of episodes -> their evaluation, which :meth:`evaluate` calls.
    reason
        Why it ended before all steps were taken; empty where it did not.
    signal
        The number of the signal that interrupted it; None: none did.
    """

    directory: Path
    outcome: RunOutcome
    steps: int
    seconds: float
    evaluation: Evaluation | None
    policy: Agent = field(repr=False)
    play: Callable[[int], Evaluation] = field(repr=False)
    reason: str = ""
    signal: int | None = None

    def evaluate(self, episodes: int = 20) -> Evaluation:
        """Play whole episodes with the policy as it is at the end.

        Parameters
        ----------
        episodes
            Their number, at least 1.
        """
        if episodes < 1:
            raise UsageError(f"episodes must be at least 1, got {episodes}")
        return self.play(episodes)
