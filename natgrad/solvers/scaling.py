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


def unscale(
    x: Tensor, numerator: Tensor, denominator: Tensor, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """x · numerator / denominator in ``dtype``, x's where none is given, and whether it kept inside
    the dtype's range.

    Scaling by powers of two loses nothing else; the product is float64's, so that factors outside
    the dtype's range do not matter.
    """
    factor = numerator.double() / denominator.double()
    answer = (x.double() * factor).to(dtype or x.dtype)
    lost = norm(answer.double() / factor - x)
    return answer, lost <= 2 * torch.finfo(answer.dtype).eps * norm(x)
