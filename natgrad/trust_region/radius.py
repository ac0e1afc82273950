"""A trust-region radius that follows the reduction ratio."""

from __future__ import annotations

import math
import sys


def update_radius(
    radius: float,
    ratio: float,
    *,
    at_boundary: bool = True,
    low: float = 0.25,
    high: float = 0.75,
    shrink: float = 0.25,
    growth: float = 2.0,
    maximum: float = math.inf,
) -> float:
    """The radius of the next step: smaller after a low reduction ratio, larger after a high one.

    Parameters
    ----------
    radius
        That of the last step, > 0 and at most ``maximum``.
    ratio
        Its reduction ratio; NaN counts as low.
    at_boundary
        Whether the step ended on the boundary. A step inside the region tells nothing about a
        larger one, so that it never grows the radius.
    low, high
        Below ``low`` the radius is multiplied by ``shrink``, above ``high`` by ``growth``.
    shrink, growth
        Factors, in (0, 1) and >= 1.
    maximum
        Bound on the result.

    Raises
    ------
    ValueError
        For settings out of range.

    Notes
    -----
    Source: Nocedal & Wright, *Numerical Optimization*, 2006, algorithm 4.1.

    Examples
    --------
    >>> update_radius(1.0, 0.9), update_radius(1.0, 0.5), update_radius(1.0, -3.0)
    (2.0, 1.0, 0.25)
    """
    if not (math.isfinite(radius) and 0 < radius <= maximum):
        raise ValueError(f"radius must be finite, above 0 and at most {maximum}, got {radius}")
    if not (0 <= low < high and 0 < shrink < 1 <= growth):
        raise ValueError(
            "expected 0 <= low < high and 0 < shrink < 1 <= growth, got "
            f"low={low}, high={high}, shrink={shrink}, growth={growth}"
        )
    if not ratio >= low:
        return max(shrink * radius, math.ulp(0.0))
    if ratio > high and at_boundary:
        return min(growth * radius, maximum, sys.float_info.max)
    return radius
