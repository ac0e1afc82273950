"""What a subject is called where nobody gave it a name."""

from __future__ import annotations

from typing import Any


def name_of(thing: Any) -> str:
    return f"{thing.__module__}.{getattr(thing, '__name__', thing)}"


def qualified_name_of(thing: Any) -> str:
    """With the class or function around it: makers of operators are often methods or nested."""
    return f"{thing.__module__}.{getattr(thing, '__qualname__', thing)}"
