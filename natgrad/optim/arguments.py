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


def require_share(most: str, **settings: Any) -> None:
    """Raise ``ValueError`` unless the settings lie in [0, 1) or, for ``most`` = "]", in (0, 1]."""
    for name, given in settings.items():
        value = _number(name, given)
        if not (0 < value <= 1 if most == "]" else 0 <= value < 1):
            interval = "(0, 1]" if most == "]" else "[0, 1)"
            raise ValueError(f"{name} must be in {interval}, got {given}")


def require_counts(*, optional: tuple[str, ...] = (), **settings: Any) -> None:
    """Raise ``ValueError`` unless the settings are whole numbers of at least 1; ``optional`` ones
    may be None."""
    for name, value in settings.items():
        if value is None and name in optional:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            none = ", or None" if name in optional else ""
            raise ValueError(f"{name} must be a whole number of at least 1{none}, got {value!r}")


def require_seed(seed: Any) -> None:
    """Raise ``ValueError`` unless a seed is a whole number."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed must be a whole number, got {seed!r}")


def require_one_source(params: Any, model: nn.Module | None, curvature: Any, form: str) -> None:
    """Raise ``ValueError`` unless there is either a model or a curvature callable, ``TypeError``
    unless the latter can be called."""
    if curvature is not None and not callable(curvature):
        raise TypeError(
            "curvature must be a function that makes an operator at the present parameters, "
            f"curvature=lambda: {type(curvature).__name__}(...); got {curvature!r}"
        )
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
    try:
        return float(value)
    except TypeError:
        raise ValueError(f"{name} must be a number, got {value!r}") from None
