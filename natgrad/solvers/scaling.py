"""Powers of two that bring a problem to unit size without rounding, and sums in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def norm(x: Tensor) -> Tensor:
    """‖x‖₂ summed in float64, a 0-d tensor."""
    value: Tensor = torch.linalg.vector_norm(x, dtype=torch.float64)
    return value


def dot(x: Tensor, y: Tensor) -> Tensor:
    """xᵀy summed in float64, a 0-d tensor."""
    return torch.dot(x.double(), y.double())


def power_of_two(vector: Tensor) -> Tensor:
    """The power of two at or below the largest |entry|, exact; 1 for 0, NaN and infinity."""
    magnitude = vector.abs().amax() if vector.numel() else vector.new_zeros(())
    mantissa, _ = torch.frexp(magnitude)
    usable = (magnitude > 0) & torch.isfinite(magnitude)
    return torch.where(usable, magnitude / (2 * mantissa), torch.ones_like(magnitude))


def unscale(x: Tensor, numerator: Tensor, denominator: Tensor) -> tuple[Tensor, Tensor]:
    """x · numerator / denominator for powers of two, and whether it kept inside the dtype's range.

    Scaling by powers of two loses nothing else.
    """
    factor = numerator.double() / denominator.double()
    answer = (x * factor).to(x.dtype)
    kept = norm(answer / factor - x) <= torch.finfo(x.dtype).eps * norm(x)
    return answer, kept
