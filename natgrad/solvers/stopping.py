"""Rules that end a truncated solve, by the quadratic model φ(x) = ½ xᵀA x − bᵀx.

A rule is a function of φ at every iterate so far, a sequence φ₁ … φᵢ of 0-d tensors, that returns a
0-d bool tensor: no read-back from the device. φ costs no product. Both rules here are free of
scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Stop = Callable[[Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class Stopping:
    """The settings that end an iterative solve but for its tolerance, checked by its solver.

    Attributes
    ----------
    limit
        The most iterations.
    stop
        A further rule, or None.
    check_every
        Iterations between two read-backs of the outcome from the device.
    growth
        Iterates are kept at distances that grow by this factor; infinite: none.
    """

    limit: int
    stop: Stop | None = None
    check_every: int = 1
    growth: float = math.inf


def relative_progress(tolerance: float = 5e-4, *, window: int = 10, fraction: float = 0.1) -> Stop:
    """Stop where the last iterations brought little of the model's whole decrease.

    At iteration i, with k = max(window, ⌊fraction · i⌋) and ε the tolerance, this is where
    φ_{i−k} < 0 and (φᵢ − φ_{i−k}) / φᵢ < k ε.

    Parameters
    ----------
    tolerance
        ε > 0, the share of the decrease that an iteration must bring on average. Raise it to stop
        earlier.
    window
        The fewest iterations k to look back, >= 1.
    fraction
        The part of the iterations so far to look back, in [0, 1).

    Raises
    ------
    ValueError
        For settings out of range.

    Notes
    -----
    Source: Martens, "Deep learning via Hessian-free optimization", 2010, section 4.4. The factor k
    is part of the rule: without it the rule stops more than ten times later.

    Examples
    --------
    >>> stop = relative_progress(window=2)
    >>> [bool(stop(torch.tensor([-1.0, -2.0, last]))) for last in (-3.0, -1.0005)]
    [False, True]
    """
    if not (tolerance > 0 and window >= 1 and 0 <= fraction < 1):
        raise ValueError(
            "expected tolerance > 0, window >= 1 and 0 <= fraction < 1, got "
            f"tolerance={tolerance}, window={window}, fraction={fraction}"
        )

    def stop(model_values: Sequence[Tensor]) -> Tensor:
        i = len(model_values)
        k = max(window, int(fraction * i))
        now = model_values[-1]
        if i <= k:
            return torch.zeros_like(now, dtype=torch.bool)
        before = model_values[-1 - k]
        return (before < 0) & ((now - before) / now < k * tolerance)

    return stop


def model_decrease(threshold: float = 0.5) -> Stop:
    """Stop where the last iteration brought less than a share of the average one.

    At iteration i, this is where φᵢ < 0 and i (1 − φ_{i−1} / φᵢ) <= threshold.

    Parameters
    ----------
    threshold
        The share of the average iteration, > 0. Raise it to stop earlier.

    Raises
    ------
    ValueError
        Where the threshold is not above 0.

    Notes
    -----
    Source: Nash & Sofer, "Assessing a search direction within a truncated-Newton method", 1990.
    """
    if not threshold > 0:
        raise ValueError(f"threshold must be above 0, got {threshold}")

    def stop(model_values: Sequence[Tensor]) -> Tensor:
        i, now = len(model_values), model_values[-1]
        if i == 1:
            return torch.zeros_like(now, dtype=torch.bool)
        return (now < 0) & (i * (1 - model_values[-2] / now) <= threshold)

    return stop
