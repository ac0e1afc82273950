"""The one exception that means: what you asked for cannot be had, and here is what can."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """An unknown name, an unsupported space or a setting out of range, in one line."""


def suggestion(name: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?``, or the list of what is known."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
