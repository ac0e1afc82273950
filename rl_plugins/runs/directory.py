"""The run directory: the files of a run, valid at every moment.

config.json       algorithm, task, every setting, versions
progress.csv      one row per update, flushed as it is written
evaluations.csv   one row per evaluation
events.*          the same numbers for TensorBoard
checkpoint.pt     what a run goes on from; beside it others: see :mod:`rl_plugins.runs.checkpoint`
outcome.json      how the run ended: finished, stopped, interrupted or failed, steps, seconds
curve.png         the learning curve
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rl_plugins.errors import UsageError
from rl_plugins.runs.checkpoint import LAST, load_checkpoint, save_checkpoint
from rl_plugins.runs.events import Events
from rl_plugins.runs.files import UNFINISHED, replace_whole, sweep
from rl_plugins.runs.tables import Row, Table

__all__ = ["RunDirectory", "load_checkpoint"]


class RunDirectory:
    """Writes a run. A context manager: leaving it closes the files, also after an exception.

    Parameters
    ----------
    path
        The directory.
    after
        Rows of later steps are dropped from the files: those of the checkpoint that is resumed.
    evaluations
        Evaluations that were written before that checkpoint; later ones are dropped, also those of
        the same step.
    shown
        Its name to the user; None: ``path``.

    Attributes
    ----------
    path
        Its name to the user.
    place
        The directory, absolute: a task may change the working directory.

    Raises
    ------
    UsageError
        Where it cannot be written, or another process is writing it.
    """

    def __init__(
        self, path: Path, *, after: int = 0, evaluations: int = 0, shown: Path | None = None
    ) -> None:
        self.path = path if shown is None else shown
        self.place = place = path.absolute()
        self._lock = _lock(path)

        def made_before(row: Row, _: int) -> bool:
            steps = str(row.get("steps") or "")
            return steps.isdecimal() and len(steps) < 20 and int(steps) <= after

        with ExitStack() as opened:  # what is open when the rest fails is closed
            opened.callback(self._unlock)
            try:
                sweep(path)
                self._progress = Table(place / "progress.csv", made_before)
                opened.callback(self._progress.close)
                self._evaluations = Table(
                    place / "evaluations.csv",
                    lambda row, number: made_before(row, number) and number < evaluations,
                )
                opened.callback(self._evaluations.close)
                self._events = Events(place, after)
            except OSError as error:
                text = error.strerror
                raise UsageError(f"cannot write the run directory {path}: {text}") from error
            opened.pop_all()

    @classmethod
    def create(
        cls, path: Path, config: Mapping[str, Any], shown: Path | None = None
    ) -> RunDirectory:
        """Make the directory of a new run.

        Parameters
        ----------
        path
            The directory; it may exist if it is empty.
        config
            The content of ``config.json``.
        shown
            Its name to the user; None: ``path``.

        Raises
        ------
        UsageError
            Where it exists and is not empty, cannot be made, or ``config`` does not fit JSON.
        """
        try:
            json.dumps(config)
        except (TypeError, ValueError) as error:
            raise UsageError(f"a setting cannot be kept in config.json: {error}") from error
        try:
            if path.exists() and (not path.is_dir() or any(map(_counts, path.iterdir()))):
                raise UsageError(
                    f"the run directory {path} exists and is not empty; choose another --run-dir, "
                    "a run is never overwritten"
                )
            path.mkdir(parents=True, exist_ok=True)
            # First, so that whatever else lies here belongs to a run that can be resumed.
            _write_json(path / "config.json", config)
        except OSError as error:
            raise UsageError(f"cannot make the run directory {path}: {error.strerror}") from error
        return cls(path, shown=shown)

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.close()
        self._evaluations.close()
        self._events.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)

    @property
    def evaluations(self) -> int:
        """The number of evaluations so far."""
        return self._evaluations.rows

    def log_progress(self, row: Row) -> None:
        """Append an update.

        Parameters
        ----------
        row
            Values by column; every row has the columns of the first, "steps" among them.
        """
        self._progress.append(row)
        self._events.progress(row)

    def log_evaluation(self, row: Row) -> None:
        """Append an evaluation.

        Parameters
        ----------
        row
            As for :meth:`log_progress`.
        """
        self._evaluations.append(row)
        self._events.evaluation(row)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file.

        Parameters
        ----------
        name, content
            Its name, and its object.
        """
        _write_json(self.place / name, content)

    def save_checkpoint(self, state: Mapping[str, Any], name: str = LAST) -> None:
        """Write a checkpoint: see :func:`rl_plugins.runs.checkpoint.save_checkpoint`.

        Parameters
        ----------
        state, name
            Its parts, and its file.
        """
        save_checkpoint(self.place, name, state)


def _counts(path: Path) -> bool:
    """Whether a file makes a directory one that is not to be written into: a killed process's does
    not."""
    return not path.name.endswith(UNFINISHED)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2) + "\n"
    replace_whole(path, lambda file: file.write(text.encode("utf-8")))


def _lock(path: Path) -> int | None:
    """A descriptor that keeps other processes from writing the directory until it is closed."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UsageError(f"cannot open the run directory {path}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise UsageError(f"another process is writing the run in {path}") from error
    except OSError:  # a file system without locks
        os.close(descriptor)
        return None
    return descriptor
