"""Powers of two that bring a problem to unit size without rounding, and sums in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

CHUNK = 2**16  # elements; float64 copies of so many stay in a core's cache
FACTOR = 1000  # the power of two of a factor, well within float64's range


def norm(x: Tensor) -> Tensor:
    """‖x‖₂ summed in float64, a 0-d tensor.

    Parameters
    ----------
    x
        A tensor of any shape. Where squares of its entries may leave the range of float64, use
        :func:`length`.
    """
    value: Tensor = torch.linalg.vector_norm(x, dtype=torch.float64)
    return value


def length(x: Tensor) -> Tensor:
    """‖x‖₂ as :func:`norm`, computed in units of the largest entry: no square leaves the range.

    Parameters
    ----------
    x
        A tensor of any shape.
    """
    size = power_of_two(x).double()
    return norm(x.double() / size) * size


def dot(x: Tensor, y: Tensor) -> Tensor:
    """xᵀy summed in float64, a 0-d tensor.

    Parameters
    ----------
    x, y
        Vectors (n,).
    """
    return torch.dot(x.double(), y.double())


def power_of_two(vector: Tensor) -> Tensor:
    """The power of two at or below the largest |entry|, exact, 0-d; 1 for 0, NaN and infinity.

    Parameters
    ----------
    vector
        A tensor of any shape, possibly empty.
    """
    magnitude = vector.abs().amax() if vector.numel() else vector.new_zeros(())
    mantissa, _ = torch.frexp(magnitude)
    usable = (magnitude > 0) & torch.isfinite(magnitude)
    return torch.where(usable, magnitude / (2 * mantissa), torch.ones_like(magnitude))


def unscale(
    x: Tensor, numerator: Tensor, denominator: Tensor, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """x · numerator / denominator, and whether it stayed in range.

    Parameters
    ----------
    x
        A tensor, float32 or float64.
    numerator, denominator
        0-d tensors. Their quotient need not be within the range of float64.
    dtype
        Of the answer; x's where None.

    Returns
    -------
    answer, kept
        The scaled x, zeros where it left the dtype's range, and a 0-d bool: False in that case.
    """
    answer, kept = rescale(x, (numerator,), (denominator,), dtype)
    return torch.where(kept, answer, 0.0), kept


def rescale(
    x: Tensor, times: Sequence[Tensor], over: Sequence[Tensor], dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """As :func:`unscale`, for several factors, and with entries out of range left infinite or 0.

    Parameters
    ----------
    x
        A tensor, float32 or float64.
    times, over
        0-d tensors: x is multiplied by the product of the first over that of the second.
    dtype
        Of the answer; x's where None.

    Returns
    -------
    answer, kept
        The scaled x, and whether it kept all its digits (0-d bool).
    """
    dtype = dtype or x.dtype
    size = power_of_two(x)
    unit = x.double() / size
    # One read-back from the device: the rest is cheaper in Python floats.
    numbers = torch.stack([factor.double() for factor in (size, *times, *over)]).tolist()
    mantissa, exponent = quotient(numbers[: 1 + len(times)], numbers[1 + len(times) :])
    answer = _shifted(unit * mantissa, exponent).to(dtype)
    back = _shifted(answer.double(), -exponent) / mantissa
    kept = norm(back - unit) <= 2 * torch.finfo(dtype).eps * norm(unit)
    return answer, kept


def quotient(times: Sequence[float], over: Sequence[float]) -> tuple[float, int]:
    """The product of numbers over that of others as (mantissa, exponent): no range to leave.

    Parameters
    ----------
    times, over
        The factors above and below the line.
    """
    mantissa, exponent = 1.0, 0
    for numbers, sign in ((times, 1), (over, -1)):
        for number in numbers:
            m, e = math.frexp(number)
            m = m if sign > 0 else 1 / m if m else math.inf
            mantissa, extra = math.frexp(mantissa * m)
            exponent += extra + sign * e
    return mantissa, exponent


def as_float(mantissa: float, exponent: int) -> float:
    """mantissa · 2^exponent, 0 or infinite where it leaves the range.

    Parameters
    ----------
    mantissa, exponent
        As :func:`quotient` returns them.
    """
    return math.copysign(math.inf, mantissa) if exponent > 1024 else math.ldexp(mantissa, exponent)


def _shifted(x: Tensor, exponent: int) -> Tensor:
    """x · 2^exponent, in factors within the range of float64; only one of them may round."""
    whole = int(exponent / FACTOR)
    x = x * 2.0 ** (exponent - whole * FACTOR)
    for _ in range(abs(whole)):
        x = x * 2.0 ** math.copysign(FACTOR, exponent)
    return x


def inner_products(left: Tensor, right: Tensor) -> Tensor:
    """The inner products ⟨left_i, right_j⟩ of rows, summed in float64.

    Parameters
    ----------
    left, right
        (k, n) and (m, n), or vectors (n,).

    Returns
    -------
    Tensor
        (k, m), float64; a vector loses its dimension, so that two vectors give a scalar.

    Notes
    -----
    On a CPU vectors are converted piece by piece: a float64 copy of a million elements has to be
    fetched from memory and costs several times the sum itself.

    Examples
    --------
    >>> inner_products(torch.ones(2, 3), torch.ones(1, 3))
    tensor([[3.],
            [3.]], dtype=torch.float64)
    """
    if left.device.type != "cpu" or left.shape[-1] <= CHUNK:
        return torch.inner(left.double(), right.double())
    pieces = torch.split(left, CHUNK, dim=-1), torch.split(right, CHUNK, dim=-1)
    pairs = zip(*pieces, strict=True)
    return torch.stack([torch.inner(a.double(), b.double()) for a, b in pairs]).sum(dim=0)
