"""Actual against predicted reduction of an objective."""

from __future__ import annotations

import math
import sys


def reduction_ratio(
    before: float,
    after: float,
    predicted: float,
    *,
    epsilon: float = sys.float_info.epsilon,
) -> float:
    """ρ = (f(θ) − f(θ + s)) / (q(0) − q(s)), guarded where both reductions are rounding.

    Parameters
    ----------
    before, after
        f(θ) and f(θ + s), minimised.
    predicted
        The model's reduction q(0) − q(s).
    epsilon
        The rounding unit of the dtype in which f is computed; give float32's for a float32 loss.

    Returns
    -------
    float
        ρ; −∞, which every rule rejects, where a value is not finite or the model predicts no
        reduction.

    Notes
    -----
    Near convergence both differences are rounding of f; adding 1,000 · epsilon · |f| to both moves
    the ratio of noise to 1 and leaves any other unchanged. The guard is relative: f and its model
    times any c > 0 give the same ρ.

    Source: Conn, Gould & Toint, *Trust-Region Methods*, 2000, section 17.4.2; there the guard has
    an absolute part, max(1, |f|), which would accept anything for an objective of small scale.

    Examples
    --------
    >>> reduction_ratio(1.0, 0.5, 0.5)
    1.0
    >>> reduction_ratio(1.0, float("nan"), 0.5)
    -inf
    """
    if not all(map(math.isfinite, (before, after, predicted))):
        return -math.inf
    guard = 1e3 * epsilon * max(abs(before), abs(after))
    if predicted + guard <= 0:
        return -math.inf
    return (before - after + guard) / (predicted + guard)
