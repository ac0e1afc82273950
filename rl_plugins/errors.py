"""Exceptions for bad usage and bad environments, and the hint for a misspelt name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """An unknown name, an unsupported space or a setting out of range, in one line."""


class ExperienceError(RuntimeError):
    """An environment returned a value that no algorithm can learn from, in one line."""


class DamageWarning(UserWarning):
    """A file of a run is damaged, and another one was taken in its place."""


def one_line(error: BaseException) -> str:
    """The text of an error without its line breaks, or its kind where it has none.

    Parameters
    ----------
    error
        Any.
    """
    return " ".join(str(error).split()) or type(error).__name__


def suggestion(name: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?``, or the list of the known names.

    Parameters
    ----------
    name
        As it was given.
    known
        The names that exist.
    """
    known = sorted(known)
    spelled = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower(), spelled, n=1)
    return f"did you mean {spelled[close[0]]!r}?" if close else f"known: {', '.join(known)}"
