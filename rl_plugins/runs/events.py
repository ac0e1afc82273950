"""A run's numbers for TensorBoard, in groups."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import Any

GROUPS = {
    "critic": ("critic_loss", "explained_variance", "action_value"),
    "episodes": ("episodes", "episode_return", "episode_length"),
    "time": ("seconds", "collect_seconds", "update_seconds", "steps_per_second"),
}
_GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}


class Events:
    """Writes TensorBoard's files, in the groups policy, critic, episodes, evaluation and time.

    Parameters
    ----------
    path
        The run's directory.
    after
        Steps from which on an earlier file's numbers are to be forgotten; 0: there is none.
    """

    def __init__(self, path: Path, after: int) -> None:
        # Imported here: it takes a second, and a mistyped command should not.
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(path), purge_step=after + 1 if after else None)

    def progress(self, row: Mapping[str, Any]) -> None:
        """Log an update.

        Parameters
        ----------
        row
            Values by column of ``progress.csv``.
        """
        for name, value in row.items():
            if name not in ("steps", "update"):
                self._add(f"{_GROUP_OF.get(name, 'policy')}/{name}", value, row["steps"])
        if isinstance(gain := row.get("improvement"), numbers.Real):
            self._add("policy/policy_loss", -float(gain), row["steps"])

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """Log an evaluation.

        Parameters
        ----------
        row
            Values by column of ``evaluations.csv``.
        """
        for name, value in row.items():
            if name not in ("steps", "seconds"):
                self._add(f"evaluation/{name}", value, row["steps"])

    def close(self) -> None:
        """Write what is left, and close."""
        self._writer.close()

    def _add(self, name: str, value: Any, steps: int) -> None:
        if isinstance(value, numbers.Real) and math.isfinite(value):
            self._writer.add_scalar(name, value, steps)
