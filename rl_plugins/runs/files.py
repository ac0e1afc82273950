"""Files of a run directory: read without trust, and replaced whole.

A directory may come from a stranger, or from a disk that fails. Nothing here follows a link, waits
at a pipe, or leaves half a file behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from rl_plugins.errors import UsageError, one_line

UNFINISHED = ".part"
DEEPEST = 100
# Windows has neither links that open follows unasked, nor these flags.
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)
_BINARY = getattr(os, "O_BINARY", 0)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; no link is followed, no pipe waited for.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    UsageError
        Where the path is a link, a pipe, a directory or a device.
    OSError
        Where it is absent or may not be read.
    """
    return os.fdopen(_opened(path, os.O_RDONLY), "rb")


def open_appending(path: Path) -> int:
    """A descriptor that appends to a regular file, which is made where it is absent.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    UsageError, OSError
        As :func:`open_regular`.
    """
    return _opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def _opened(path: Path, flags: int) -> int:
    if path.is_symlink():
        raise UsageError(f"{path} is a link; a run's files are files of its own directory")
    descriptor = os.open(path, flags | _NO_LINK | _NO_WAIT | _BINARY, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UsageError(f"{path} is no regular file")
    return descriptor


def replace_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file beside its place, then move it there: a crash leaves the old one or the new one.

    The content is on the disk before the name moves, and the name before this returns: a power
    failure leaves one of the two as well.

    Parameters
    ----------
    path, write
        The place, and a function that writes into an open file.
    """
    # A name that nobody can have planted a link under: O_EXCL fails where there is anything.
    beside = path.with_name(f".{path.name}-{secrets.token_hex(8)}{UNFINISHED}")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_LINK | _BINARY
    descriptor = os.open(beside, flags, 0o666)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def keep_as(path: Path, other: Path) -> None:
    """Give a file a second name, which replaces what had it. At every moment both names are whole.

    Parameters
    ----------
    path, other
        The file, and its second name.
    """
    beside = path.with_name(f".{other.name}-{secrets.token_hex(8)}{UNFINISHED}")
    try:
        os.link(path, beside, follow_symlinks=False)
        os.replace(beside, other)
        # Where they were one file already, as after a crash, the move has done nothing.
        beside.unlink(missing_ok=True)
    except OSError:  # a file system without hard links
        beside.unlink(missing_ok=True)
        with open_regular(path) as file:
            content = file.read()
        replace_whole(other, lambda copy: copy.write(content))
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Bring the names in a directory to the disk, where the system can.

    Parameters
    ----------
    path
        The directory.
    """
    with contextlib.suppress(OSError):  # Windows, and file systems without it
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sweep(path: Path) -> None:
    """Remove the unfinished files that a killed process left in a run directory.

    Parameters
    ----------
    path
        The directory, which no other process is writing.
    """
    for left in path.glob(f"*{UNFINISHED}"):
        with contextlib.suppress(OSError):
            left.unlink()


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
        with open_regular(path / name) as file:
            content = json.loads(file.read().decode("utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"{path} is not a run directory: it holds no {name}") from error
    except OSError as error:
        raise UsageError(f"cannot read {path / name}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # ValueError: also an int of 5,000 digits
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path / name} is damaged: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path / name} is damaged: expected a JSON object")
    if _is_deeper(content, DEEPEST):
        raise UsageError(f"{path / name} is damaged: it is nested more than {DEEPEST} times")
    return content


def _is_deeper(value: Any, than: int) -> bool:
    if not isinstance(value, (dict, list)):
        return False
    parts = value.values() if isinstance(value, dict) else value
    return than == 0 or any(_is_deeper(part, than - 1) for part in parts)
