"""Diagonal matrices, and the identity."""

from __future__ import annotations

import torch
from torch import Tensor

from natgrad.curvature.operator import LinearOperator


class Diagonal(LinearOperator):
    """The diagonal matrix diag(d), (n, n).

    Parameters
    ----------
    diagonal
        d (n,), real floating point; it is not copied.

    Raises
    ------
    ValueError
        If d is not a vector.
    TypeError
        If it is not real floating point.

    Notes
    -----
    Cost: n operations a product.

    Examples
    --------
    >>> (Diagonal(torch.tensor([1.0, 2.0])) @ torch.ones(2)).tolist()
    [1.0, 2.0]
    """

    def __init__(self, diagonal: Tensor) -> None:
        if diagonal.ndim != 1:
            raise ValueError(f"expected a diagonal (n,), got shape {tuple(diagonal.shape)}")
        if not diagonal.dtype.is_floating_point:
            raise TypeError(f"expected a real floating-point diagonal, got {diagonal.dtype}")
        super().__init__(len(diagonal), diagonal.dtype, diagonal.device)
        self._diagonal = diagonal.detach()

    def _multiply(self, matrix: Tensor) -> Tensor:
        return self._diagonal.unsqueeze(1) * matrix

    def diagonal(self) -> Tensor:
        """Return d (n,), without a product."""
        return self._diagonal.clone()


class Identity(Diagonal):
    """The identity I, (n, n).

    Parameters
    ----------
    size
        n, the number of rows.
    dtype
        The dtype of its vectors. Set it to that of the operators it is added to.
    device
        The device of its vectors. Set it likewise.

    Raises
    ------
    ValueError
        If the size is negative.

    Notes
    -----
    Cost: one copy of the vector a product, O(1) memory.

    Examples
    --------
    >>> (2 * Identity(2) @ torch.ones(2)).tolist()
    [2.0, 2.0]
    """

    def __init__(
        self,
        size: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if size < 0:
            raise ValueError(f"size must be >= 0, got {size}")
        super().__init__(torch.ones((), dtype=dtype, device=device).expand(size))

    def _multiply(self, matrix: Tensor) -> Tensor:
        return matrix.clone()
