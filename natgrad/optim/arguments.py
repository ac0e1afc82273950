"""Checks of the arguments of an optimizer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def require_least(
    settings: dict[str, Any], least: float, *names: str, exclusive: bool = False
) -> None:
    """Raise ``ValueError`` unless the named settings are at least, or above, ``least``."""
    for name in names:
        value = _number(name, settings[name])
        if not (value > least if exclusive else value >= least):
            relation = "above" if exclusive else "at least"
            raise ValueError(f"{name} must be {relation} {least}, got {settings[name]}")


def require_one_source(params: Any, model: nn.Module | None, curvature: Any, form: str) -> None:
    """Raise ``ValueError`` unless there is either a model or a curvature callable."""
    if (curvature is None) == (model is None and not isinstance(params, nn.Module)):
        name = form.split("(")[0]
        raise ValueError(
            f"say once where curvature comes from: {form}, with model=... for parameter groups, or "
            f"{name}(parameters, curvature=lambda: operator)"
        )


def _number(name: str, value: Any) -> float:
    """Return a setting as a float. Raises ``ValueError`` if it is not one number."""
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(
            f"{name} must be a number or a tensor of one element, got shape {tuple(value.shape)}; "
            "for a rate of its own for each parameter make parameter groups"
        )
    if isinstance(value, (str, bytes)):
        raise ValueError(f"{name} must be a number, got the text {value!r}")
    return float(value)
