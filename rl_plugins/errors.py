"""The one exception that means: what you asked for cannot be had, and here is what can."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any


class UsageError(ValueError):
    """An unknown name, an unsupported space or a setting out of range, in one line."""


class ExperienceError(RuntimeError):
    """An environment returned something that nothing can be learnt from, in one line."""


def require_least(settings: Any, least: float, *names: str, exclusive: bool = False) -> None:
    """Raise ``ValueError`` unless the named settings are finite and >= least (> if exclusive)."""
    for name in names:
        value = getattr(settings, name)
        if not math.isfinite(value) or value < least or (exclusive and value == least):
            relation = "above" if exclusive else "at least"
            raise ValueError(f"{name} must be {relation} {least}, got {value}")


def require_sizes(settings: Any, name: str) -> None:
    """Raise ``ValueError`` unless every width of the named setting is at least 1."""
    sizes = getattr(settings, name)
    if any(size < 1 for size in sizes):
        raise ValueError(f"{name} must be at least 1, got {sizes}")


def require_between(settings: Any, low: float, high: float, *names: str) -> None:
    """Raise ``ValueError`` unless the named settings lie in [low, high]."""
    for name in names:
        value = getattr(settings, name)
        if not low <= value <= high:
            raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {value}")


def require_one_of(settings: Any, name: str, *choices: str) -> None:
    """Raise ``ValueError`` unless the named setting is one of the choices."""
    value = getattr(settings, name)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def suggestion(name: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?``, or the list of what is known."""
    known = sorted(known)
    spelled = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower(), spelled, n=1)
    return f"did you mean {spelled[close[0]]!r}?" if close else f"known: {', '.join(known)}"
