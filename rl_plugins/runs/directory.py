"""The run directory: what a run leaves behind, valid at every moment.

    config.json       what was run: algorithm, task, every setting, versions
    progress.csv      one row per update, flushed as it is written
    evaluations.csv   one row per evaluation
    events.*          the same numbers for TensorBoard
    checkpoint.pt     everything that a run goes on from, loadable with ``weights_only=True``
    outcome.json      how the run ended: finished, interrupted or failed, steps, seconds
    curve.png         the learning curve

Files that are rewritten are written beside their place and moved into it, so that a crash leaves
the old one or the new one, never half of one.
"""

from __future__ import annotations

import csv
import json
import math
import os
import pickle
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, TextIO

import torch

from rl_plugins.errors import UsageError

Row = Mapping[str, Any]


class RunDirectory:
    """Writes a run. A context manager: leaving it closes the files, whatever happened."""

    def __init__(self, path: Path, *, after: int = 0) -> None:
        """Open the files of a run; rows of later steps than ``after`` are dropped from them."""
        # Imported here: it takes a second, and a mistyped command should not.
        from torch.utils.tensorboard.writer import SummaryWriter

        self.path = path
        self._progress = _Table(path / "progress.csv", after)
        self._evaluations = _Table(path / "evaluations.csv", after)
        self._events = SummaryWriter(str(path), purge_step=after + 1 if after else None)

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any]) -> RunDirectory:
        """A new run. Raises :class:`UsageError` where the directory exists and is not empty."""
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

    def log_progress(self, row: Row) -> None:
        """Append an update. Every row has the columns of the first."""
        self._progress.append(row)
        self._log_events(row)

    def log_evaluation(self, row: Row) -> None:
        """Append an evaluation."""
        self._evaluations.append(row)
        self._log_events({f"evaluation/{name}": value for name, value in row.items()}, row["steps"])

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        text = json.dumps(content, indent=2) + "\n"
        _replace(self.path / name, lambda path: path.write_text(text, encoding="utf-8"))

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        _replace(self.path / "checkpoint.pt", lambda path: torch.save(dict(state), path))

    def _log_events(self, row: Row, steps: int | None = None) -> None:
        for name, value in row.items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                self._events.add_scalar(name, value, row["steps"] if steps is None else steps)


def read_json(path: Path, name: str) -> dict[str, Any]:
    """A JSON object of a run. Raises :class:`UsageError` where the directory holds no run."""
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
    """What ``save_checkpoint`` saved. Raises :class:`UsageError` where nothing can be read."""
    if not (path / "checkpoint.pt").is_file():
        raise UsageError(f"{path} holds no checkpoint.pt yet")
    try:
        state: dict[str, Any] = torch.load(path / "checkpoint.pt", weights_only=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise UsageError(f"{path / 'checkpoint.pt'} is damaged and cannot be read") from error
    return state


class _Table:
    def __init__(self, path: Path, after: int) -> None:
        columns = _drop_later_rows(path, after) if path.exists() else []
        self._file: TextIO = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, columns) if columns else None

    def append(self, row: Row) -> None:
        if self._writer is None:
            self._writer = csv.DictWriter(self._file, list(row))
            self._writer.writeheader()
        self._writer.writerow({name: _cell(value) for name, value in row.items()})
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _drop_later_rows(path: Path, after: int) -> list[str]:
    """Keep the rows of steps up to ``after``; the columns."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        # A row that a crash cut off has no number of steps, or is the last and has fewer cells.
        kept = [
            row for row in reader if (row["steps"] or "").isdigit() and None not in row.values()
        ]
        columns = list(reader.fieldnames or ())

    def write(beside: Path) -> None:
        with beside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(row for row in kept if int(row["steps"]) <= after)

    if columns:
        _replace(path, write)
    return columns


def _cell(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name.lower()
    return repr(value) if isinstance(value, float) else value


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    beside = path.with_name(path.name + ".part")
    write(beside)
    os.replace(beside, path)
