"""The longest step along s whose quadratic distance stays within δ."""

from __future__ import annotations

import math
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor


class StepSizeStatus(Enum):
    """Whether there is a step size; the value says how the caller can respond."""

    OK = "½ (αs)ᵀK(αs) = δ"
    NONPOSITIVE_CURVATURE = (
        "sᵀK s <= 0: the metric is not positive along s (or s is zero); add damping to the solve, "
        "or build K so that it is positive semidefinite"
    )
    NONFINITE = (
        "sᵀK s is NaN or infinite: the gradient or the metric overflowed; or it is so small that "
        "α itself leaves float64: s is next to nothing, scale it up"
    )
    NOT_DESCENT = (
        "gᵀs <= 0: the solver's answer does not go along g; K is not positive definite there, add "
        "damping"
    )


class StepSize(NamedTuple):
    """A step size and its status.

    Attributes
    ----------
    alpha
        α, 0-d float64 where ``sKs`` is a tensor, else float; 0 where there is none.
    status
        OK, or why there is none.
    """

    alpha: Tensor | float
    status: StepSizeStatus


def step_size(sKs: Tensor | float, delta: float) -> StepSize:
    """α = √(2 δ / sᵀK s), so that ½ (αs)ᵀK(αs) = δ.

    Parameters
    ----------
    sKs
        sᵀK s, a number or a 0-d tensor. With s from a solver it is ``solution.x @ solution.Ax``, at
        no further product.
    delta
        The bound δ > 0, finite. Raise it for longer steps.

    Returns
    -------
    StepSize
        α, or 0 and a status where there is none.

    Raises
    ------
    ValueError
        Where δ is not positive and finite, or ``sKs`` is no scalar.

    Notes
    -----
    Computed in float64 as √(2 δ) / √(sᵀK s), which neither overflows nor underflows where the
    quotient would.

    Source: Schulman et al., "Trust region policy optimization", 2015, appendix C.

    Examples
    --------
    >>> round(step_size(8.0, 0.01).alpha, 12)  # ½ · 0.05² · 8 = 0.01
    0.05
    """
    if not (math.isfinite(delta) and delta > 0):
        raise ValueError(f"delta must be positive and finite, got {delta}")
    curvature = torch.as_tensor(sKs, dtype=torch.float64)
    if curvature.ndim:
        raise ValueError(f"sKs must be a scalar, got shape {tuple(curvature.shape)}")
    # 2 √(δ/2) is √(2δ) to the last bit, without the overflow of 2δ.
    alpha = 2 * math.sqrt(delta / 2) / curvature.sqrt()
    status = StepSizeStatus.OK
    if not bool(torch.isfinite(curvature)):
        status = StepSizeStatus.NONFINITE
    elif not bool(curvature > 0):
        status = StepSizeStatus.NONPOSITIVE_CURVATURE
    elif not bool(torch.isfinite(alpha)):
        status = StepSizeStatus.NONFINITE
    alpha = alpha if status is StepSizeStatus.OK else torch.zeros_like(curvature)
    return StepSize(alpha if isinstance(sKs, Tensor) else alpha.item(), status)
