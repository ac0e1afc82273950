"""Checks of the solvers' settings, with the errors that they raise."""

from __future__ import annotations

import math
import operator

import torch
from torch import Tensor


def as_limit(max_iterations: int | None, size: int) -> int:
    """The bound on the iterations, 10 n where None; checked by :func:`as_count`.

    Parameters
    ----------
    max_iterations
        The caller's bound, or None.
    size
        n.
    """
    if max_iterations is None:
        return 10 * size
    return as_count(max_iterations, "max_iterations")


def as_count(number: int, name: str) -> int:
    """The number as an int; ``TypeError`` where it is none, ``ValueError`` where negative.

    Parameters
    ----------
    number
        Any integer type.
    name
        Its name in error messages.
    """
    try:
        count = operator.index(number)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {number!r}") from None
    require(count >= 0, f"{name} must be >= 0, got {number}")
    return count


def check_tolerances(rtol: float, atol: float = 0.0) -> None:
    """Raise ``ValueError`` for a tolerance that is negative or NaN.

    Parameters
    ----------
    rtol, atol
        Relative and absolute; infinity passes: any answer is accepted.
    """
    require(rtol >= 0, f"rtol must be >= 0, got {rtol}")
    require(atol >= 0, f"atol must be >= 0, got {atol}")


def as_samples(r: Tensor, size: int, like: Tensor) -> Tensor:
    """A checked and detached right-hand side of a least-squares problem.

    Parameters
    ----------
    r
        Dense (m,); ``TypeError`` where sparse, ``ValueError`` for another shape, dtype or device.
    size
        m.
    like
        A tensor with the expected dtype and device.
    """
    check_dense(r, "r")
    if r.shape != (size,) or r.dtype != like.dtype or r.device != like.device:
        raise ValueError(
            f"r must be ({size},) {like.dtype} on {like.device}, "
            f"got {tuple(r.shape)} {r.dtype} on {r.device}"
        )
    return r.detach()


def check_dense(vector: Tensor, name: str) -> None:
    """Raise ``TypeError`` for a sparse tensor.

    Parameters
    ----------
    vector
        A tensor of any shape.
    name
        Its name in error messages.
    """
    if vector.layout != torch.strided:
        raise TypeError(f"{name} is {vector.layout}; expected a dense tensor: .to_dense()")


def check_region(damping: float, radius: float) -> None:
    """Raise ``ValueError`` for a damping or radius out of range.

    Parameters
    ----------
    damping
        Must be finite and >= 0.
    radius
        Must be positive; infinity passes.
    """
    check_damping(damping)
    require(radius > 0, f"radius must be positive, got {radius}")


def check_damping(damping: float) -> None:
    """Raise ``ValueError`` for a damping that is negative or not finite.

    Parameters
    ----------
    damping
        The damping λ.
    """
    require(
        math.isfinite(damping) and damping >= 0, f"damping must be finite and >= 0, got {damping}"
    )


def require(condition: bool, message: str) -> None:
    """Raise ``ValueError`` with the message unless the condition holds.

    Parameters
    ----------
    condition, message
        The requirement, and the text where it fails.
    """
    if not condition:
        raise ValueError(message)
