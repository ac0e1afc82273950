"""The run directory: the files of a run, valid at every moment.

config.json       algorithm, task, every setting, versions
progress.csv      one row per update, flushed as it is written
evaluations.csv   one row per evaluation
events.*          the same numbers for TensorBoard
checkpoint.pt     everything that a run goes on from, loadable with ``weights_only=True``
outcome.json      how the run ended: finished, interrupted or failed, steps, seconds
curve.png         the learning curve
"""

from __future__ import annotations

import csv
import json
import math
import numbers
import os
import pickle
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from rl_plugins.errors import UsageError

Row = Mapping[str, Any]
CHECKPOINT_PARTS = frozenset({"agent", "generator", "steps", "updates", "seconds"})


class RunDirectory:
    """Writes a run. A context manager: leaving it closes the files, also after an exception.

    Parameters
    ----------
    path
        The directory.
    after
        Rows of later steps are dropped from the files: those of the checkpoint that is resumed.

    Raises
    ------
    UsageError
        Where it cannot be written, or another process is writing it.
    """

    def __init__(self, path: Path, *, after: int = 0) -> None:
        # Imported here: it takes a second, and a mistyped command should not.
        from torch.utils.tensorboard.writer import SummaryWriter

        self.path = path
        self._lock = _lock(path)
        try:
            self._progress = _Table(path / "progress.csv", after)
            self._evaluations = _Table(path / "evaluations.csv", after)
            self._events = SummaryWriter(str(path), purge_step=after + 1 if after else None)
        except OSError as error:
            self._unlock()
            raise UsageError(f"cannot write the run directory {path}: {error.strerror}") from error

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any]) -> RunDirectory:
        """Make the directory of a new run.

        Parameters
        ----------
        path
            The directory; it may exist if it is empty.
        config
            The content of ``config.json``.

        Raises
        ------
        UsageError
            Where it exists and is not empty, cannot be made, or ``config`` does not fit JSON.
        """
        try:
            json.dumps(config)
        except TypeError as error:
            raise UsageError(f"a setting cannot be kept in config.json: {error}") from error
        try:
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise UsageError(
                    f"the run directory {path} exists and is not empty; choose another --run-dir, "
                    "a run is never overwritten"
                )
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot make the run directory {path}: {error.strerror}") from error
        directory = cls(path)
        directory.write_json("config.json", config)
        return directory

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

    def log_progress(self, row: Row) -> None:
        """Append an update.

        Parameters
        ----------
        row
            Values by column; every row has the columns of the first, "steps" among them.
        """
        self._progress.append(row)
        self._log_events(row)

    def log_evaluation(self, row: Row) -> None:
        """Append an evaluation.

        Parameters
        ----------
        row
            As for :meth:`log_progress`.
        """
        self._evaluations.append(row)
        self._log_events({f"evaluation/{name}": value for name, value in row.items()}, row["steps"])

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file.

        Parameters
        ----------
        name, content
            Its name, and its object.
        """
        text = json.dumps(content, indent=2) + "\n"
        replace_whole(self.path / name, lambda path: path.write_text(text, encoding="utf-8"))

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint.

        Parameters
        ----------
        state
            Everything that a run goes on from, with ``CHECKPOINT_PARTS`` as its keys.
        """
        replace_whole(self.path / "checkpoint.pt", lambda path: torch.save(dict(state), path))

    def _log_events(self, row: Row, steps: int | None = None) -> None:
        for name, value in row.items():
            if isinstance(value, numbers.Real) and math.isfinite(value):
                self._events.add_scalar(name, value, row["steps"] if steps is None else steps)


def read_json(path: Path, name: str) -> dict[str, Any]:
    """A JSON object of a run.

    Parameters
    ----------
    path, name
        The run's directory, and the name of the file.

    Raises
    ------
    UsageError
        Where the directory holds no such file, or the file no JSON object.
    """
    try:
        content = json.loads((path / name).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} is not a run directory: it holds no {name}") from error
    except ValueError as error:
        raise UsageError(f"{path / name} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path / name} is damaged: expected a JSON object")
    return content


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The last checkpoint of a run, as :meth:`RunDirectory.save_checkpoint` took it.

    Parameters
    ----------
    path
        The run's directory.

    Raises
    ------
    UsageError
        Where there is none, or it cannot be read.
    """
    if not (path / "checkpoint.pt").is_file():
        raise UsageError(f"{path} holds no checkpoint.pt yet")
    try:
        state: dict[str, Any] = torch.load(path / "checkpoint.pt", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise UsageError(
            f"{path / 'checkpoint.pt'} is damaged, or its plugin's state_dict holds more than "
            "tensors, numbers, strings and containers of these"
        ) from error
    if not isinstance(state, dict) or not state.keys() >= CHECKPOINT_PARTS:
        raise UsageError(f"{path / 'checkpoint.pt'} is no checkpoint of a run")
    return state


def _lock(path: Path) -> int | None:
    """A descriptor that keeps other processes from writing the directory until it is closed."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise UsageError(f"another process is writing the run in {path}") from error
    except OSError:  # a file system without locks
        os.close(descriptor)
        return None
    return descriptor


class _Table:
    def __init__(self, path: Path, after: int) -> None:
        columns = _drop_later_rows(path, after) if path.exists() else []
        self._file: TextIO = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, columns) if columns else None

    def append(self, row: Row) -> None:
        if self._writer is None:
            self._writer = csv.DictWriter(self._file, list(row))
            self._writer.writeheader()
        elif list(self._writer.fieldnames) != list(row):
            raise UsageError(
                f"{self._file.name} has other columns than the run would write now: its algorithm "
                "has changed; train a new one"
            )
        self._writer.writerow({name: _cell(value) for name, value in row.items()})
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _drop_later_rows(path: Path, after: int) -> list[str]:
    """Keep the rows of steps up to ``after``; the columns."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        kept = [row for row in reader if is_whole(row) and row.get("steps", "").isdecimal()]
        columns = list(reader.fieldnames or ())

    def write(beside: Path) -> None:
        with beside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(row for row in kept if int(row["steps"]) <= after)

    if columns:
        replace_whole(path, write)
    return columns


def is_whole(row: Row) -> bool:
    """Whether a row has a cell for every column; False for a row truncated by a crash.

    Parameters
    ----------
    row
        As ``csv.DictReader`` returns it.
    """
    return None not in row.values()


def _cell(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name.lower()
    return repr(float(value)) if isinstance(value, (float, np.floating)) else value


def replace_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place, then move it there: a crash leaves the old one or the new one.

    Parameters
    ----------
    path, write
        The place, and a function that writes a given path.
    """
    beside = path.with_name(path.name + ".part")
    try:
        write(beside)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
