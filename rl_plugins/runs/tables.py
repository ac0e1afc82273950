"""The tables of a run: rows appended one by one, whole after every crash."""

from __future__ import annotations

import csv
import io
import os
import warnings
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from rl_plugins.errors import DamageWarning, UsageError
from rl_plugins.runs.files import open_appending, open_regular, replace_whole

Row = Mapping[str, Any]
# More than returns and steps can be, and still far from what a picture's arithmetic overflows at.
LARGEST = 1e100


class Table:
    """A CSV file that grows by a row at a time, each flushed as it is written.

    Parameters
    ----------
    path
        The file; absent: made with the first row.
    keep
        (row, number of rows before it) -> whether a row that is there already stays.
    """

    def __init__(self, path: Path, keep: Callable[[Row, int], bool]) -> None:
        columns, self.rows = _drop_rows(path, keep) if os.path.lexists(path) else ([], 0)
        self._path = path
        self._file = os.fdopen(open_appending(path), "a", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, columns) if columns else None

    def append(self, row: Row) -> None:
        """Write a row; the first one of a new table names its columns.

        Parameters
        ----------
        row
            Values by column.

        Raises
        ------
        UsageError
            For other columns than the table's.
        """
        if self._is_gone():
            self._reopen()
        if self._writer is None:
            self._writer = csv.DictWriter(self._file, list(row))
            self._writer.writeheader()
        elif list(self._writer.fieldnames) != list(row):
            raise UsageError(
                f"{self._path} has other columns than the run would write now: its algorithm has "
                "changed; train a new one"
            )
        self._writer.writerow({name: _cell(value) for name, value in row.items()})
        self._file.flush()
        self.rows += 1

    def _is_gone(self) -> bool:
        """Whether the file was deleted, or another one put in its place, while it was written."""
        try:
            return not os.path.samestat(os.fstat(self._file.fileno()), os.lstat(self._path))
        except FileNotFoundError:
            return True

    def _reopen(self) -> None:
        warnings.warn(
            f"{self._path} was deleted or replaced while the run wrote it: its rows are lost, and "
            "the next ones go into a new file",
            DamageWarning,
            stacklevel=3,
        )
        self._file.close()
        if os.path.lexists(self._path):
            replace_whole(self._path, lambda file: file.write(b""))
        self._file = os.fdopen(open_appending(self._path), "a", newline="", encoding="utf-8")
        self._writer = None

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table, without those that a crash cut off.

    Parameters
    ----------
    path
        The file; absent: no rows.

    Raises
    ------
    UsageError
        Where it cannot be read, or is no table.
    """
    return _read(path)[1]


def numbers(rows: list[dict[str, str]], path: Path, *names: str) -> list[list[float]]:
    """Columns of a table, without the rows where one of them is blank.

    Parameters
    ----------
    rows
        From :func:`read_rows`.
    path
        The file, for the message.
    *names
        The columns.

    Raises
    ------
    UsageError
        Where a cell is no number, or one that no run writes: not finite, or beyond ``LARGEST``.
    """
    whole = [row for row in rows if all(row.get(name) for name in names)]
    try:
        found = [[float(row[name]) for row in whole] for name in names]
    except ValueError as error:
        raise UsageError(f"{path} is damaged: {str(error)[:200]}") from error
    for name, column in zip(names, found, strict=True):
        for value in column:
            if not abs(value) <= LARGEST:  # NaN too
                raise UsageError(f"{path} is damaged: {name} is {value}")
    return found


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns and the whole rows."""
    try:
        with open_regular(path) as file:
            text = file.read().decode("utf-8")
        reader = csv.DictReader(io.StringIO(text, newline=""))
        rows = [row for row in reader if None not in row.values() and None not in row]
        columns = list(reader.fieldnames or ())
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} is damaged: {error}") from error
    if len(set(columns)) < len(columns):
        raise UsageError(f"{path} is damaged: a column comes twice")
    return columns, rows


def _drop_rows(path: Path, keep: Callable[[Row, int], bool]) -> tuple[list[str], int]:
    """The columns, and the number of rows that stay."""
    columns, rows = _read(path)
    kept = [row for number, row in enumerate(rows) if keep(row, number)]
    if not columns:
        return [], 0

    def write(file: Any) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(kept)
        file.write(text.getvalue().encode("utf-8"))

    replace_whole(path, write)
    return columns, len(kept)


def _cell(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name.lower()
    return repr(float(value)) if isinstance(value, (float, np.floating)) else value
