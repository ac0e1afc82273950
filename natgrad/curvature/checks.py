"""Checks of matrices and weights that callers pass, with errors that name the cure."""

from __future__ import annotations

import torch
from torch import Tensor


def checked_symmetric(matrix: Tensor) -> Tensor:
    """Return a matrix detached, if it is square, real and symmetric up to rounding.

    Raises ``ValueError`` or ``TypeError`` otherwise.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"expected a square matrix (n, n), got shape {tuple(matrix.shape)}")
    if not matrix.dtype.is_floating_point:
        raise TypeError(f"expected a real floating-point matrix, got {matrix.dtype}")
    matrix = matrix.detach()
    # sqrt(eps) lets products such as JᵀJ through, whose two triangles round differently.
    tolerance = torch.finfo(matrix.dtype).eps ** 0.5
    # Compare with the largest entry: squares in a norm would under- or overflow at extreme scales.
    largest = matrix.abs().amax() if matrix.numel() else matrix.new_zeros(())
    if bool(((matrix - matrix.mT).abs() > tolerance * largest).any()):
        raise ValueError(
            "expected a symmetric matrix; its antisymmetric part is not rounding. "
            "Pass (M + M.mT) / 2 if the symmetric part is what you mean"
        )
    return matrix


def checked_weights(weights: Tensor, like: Tensor) -> Tensor:
    """Return weights of samples detached, in the dtype and on the device of ``like``.

    Raises ``ValueError`` unless they are a real tensor, finite, >= 0 and not all zero.
    """
    if not isinstance(weights, Tensor) or weights.is_complex() or not weights.numel():
        got = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
        raise ValueError(f"weights must be a real tensor with one entry a sample, got {got}")
    weights = weights.detach().to(like)
    if not bool(((weights >= 0) & torch.isfinite(weights)).all()) or not bool(weights.any()):
        raise ValueError(
            "weights must be finite, >= 0 and not all zero, got values from "
            f"{float(weights.min()):g} to {float(weights.max()):g}"
        )
    return weights
