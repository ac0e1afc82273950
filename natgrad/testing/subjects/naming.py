"""Default names of subjects."""

from __future__ import annotations

from typing import Any


def name_of(thing: Any) -> str:
    """The module and the name of ``thing``, or its ``str`` where it has no name."""
    return f"{thing.__module__}.{getattr(thing, '__name__', thing)}"


def qualified_name_of(thing: Any) -> str:
    """As :func:`name_of`, with the class or function around a method or a nested function."""
    return f"{thing.__module__}.{getattr(thing, '__qualname__', thing)}"
