"""When a run is evaluated and saved."""

from __future__ import annotations

import math

from rl_plugins.runs.settings import RunSettings

CHECKPOINTS = 4
LIMITS_BETWEEN = 3


class Schedule:
    """The updates after which a run is evaluated, and those after which it is saved.

    A checkpoint begins new episodes. Where it may choose, they lie at least three of the task's
    step limits apart: otherwise hardly an episode would end, and no return be seen.

    Parameters
    ----------
    run
        Settings of the loop.
    step_limit
        Steps of the longest episode; None: not known.
    """

    def __init__(self, run: RunSettings, step_limit: int | None) -> None:
        self._updates = math.ceil(run.total_steps / (run.environments * run.rollout_length))
        self._evaluations = run.evaluations if run.evaluation_episodes else 0
        if run.checkpoints is not None:
            self._checkpoints = run.checkpoints
        else:
            steps_of_each = self._updates * run.rollout_length
            room = steps_of_each // (LIMITS_BETWEEN * step_limit) if step_limit else CHECKPOINTS + 1
            self._checkpoints = max(0, min(CHECKPOINTS, room - 1))

    def evaluates_after(self, update: int) -> bool:
        """Whether an evaluation follows an update.

        Parameters
        ----------
        update
            Its number, from 1 on.
        """
        return self._is_due(update, self._evaluations)

    def saves_after(self, update: int) -> bool:
        """Whether a checkpoint follows an update.

        Parameters
        ----------
        update
            Its number, from 1 on.
        """
        return self._is_due(update, self._checkpoints)

    def _is_due(self, update: int, count: int) -> bool:
        """Whether it is one of ``count`` updates, evenly spaced, the last of all left out."""
        # update = updates·k // (count + 1) for a k of 1 … count
        k = -(-update * (count + 1) // self._updates)
        return 1 <= k <= count and self._updates * k // (count + 1) == update
