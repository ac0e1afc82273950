"""Numbers that a group of parameters may set, checked."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def require_least(
    settings: dict[str, Any], least: float, *names: str, exclusive: bool = False
) -> None:
    """Raise ``ValueError`` unless the named settings are at least, or above, ``least``."""
    for name in names:
        value = _number(name, settings[name])
        if not (value > least if exclusive else value >= least):
            relation = "above" if exclusive else "at least"
            raise ValueError(f"{name} must be {relation} {least}, got {settings[name]}")


def _number(name: str, value: Any) -> float:
    """A setting as a float. Raises ``ValueError`` for what is no number."""
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(
            f"{name} must be a number or a tensor of one element, got shape {tuple(value.shape)}; "
            "for a rate of its own for each parameter make parameter groups"
        )
    if isinstance(value, (str, bytes)):
        raise ValueError(f"{name} must be a number, got the text {value!r}")
    return float(value)
