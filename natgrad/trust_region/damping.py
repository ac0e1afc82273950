"""Levenberg-Marquardt damping that follows the reduction ratio."""

from __future__ import annotations

import math


def update_damping(
    damping: float,
    ratio: float,
    *,
    low: float = 0.25,
    high: float = 0.75,
    factor: float = 1.5,
    minimum: float = 0.0,
    maximum: float = math.inf,
) -> float:
    """The damping of the next step: larger after a low reduction ratio, smaller after a high one.

    Parameters
    ----------
    damping
        That of the last step, finite and >= 0.
    ratio
        The reduction ratio of the model *without* the damping; NaN counts as low.
    low, high
        Below ``low`` the damping is multiplied by ``factor``, above ``high`` divided by it.
    factor
        > 1. Raise it for faster changes.
    minimum, maximum
        Bounds on the result. Give ``minimum`` above 0 where the damping should be able to rise
        again from it.

    Raises
    ------
    ValueError
        For settings out of range.

    Notes
    -----
    Source: Martens, "Deep learning via Hessian-free optimization", 2010, section 4.1.

    Examples
    --------
    >>> update_damping(3.0, 0.1), update_damping(3.0, 0.5), update_damping(3.0, 0.9)
    (4.5, 3.0, 2.0)
    """
    if not (math.isfinite(damping) and damping >= 0):
        raise ValueError(f"damping must be finite and >= 0, got {damping}")
    if not (0 <= low < high and factor > 1 and 0 <= minimum <= maximum):
        raise ValueError(
            "expected 0 <= low < high, factor > 1 and 0 <= minimum <= maximum, got "
            f"low={low}, high={high}, factor={factor}, minimum={minimum}, maximum={maximum}"
        )
    if not ratio >= low:
        damping *= factor
    elif ratio > high:
        damping /= factor
    return min(max(damping, minimum), maximum)
