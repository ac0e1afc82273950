"""An explicit symmetric matrix as an operator."""

from __future__ import annotations

import torch
from torch import Tensor

from natgrad.curvature.operator import LinearOperator


class Dense(LinearOperator):
    """A symmetric matrix (n, n). Cost: n² a product, n² memory (the matrix itself, not a copy).

    Raises ``ValueError`` where the matrix is not square, or differs from its transpose by more
    than rounding of its own dtype explains.

    >>> (Dense(torch.tensor([[2.0, 1.0], [1.0, 3.0]])) @ torch.tensor([1.0, 1.0])).tolist()
    [3.0, 4.0]
    """

    def __init__(self, matrix: Tensor) -> None:
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"expected a square matrix (n, n), got shape {tuple(matrix.shape)}")
        if not matrix.dtype.is_floating_point:
            raise TypeError(f"expected a real floating-point matrix, got {matrix.dtype}")
        matrix = matrix.detach()
        # sqrt(eps) lets products such as JᵀJ through, whose two triangles round differently.
        tolerance = torch.finfo(matrix.dtype).eps ** 0.5
        # Entry against largest entry: squares of a norm would under- or overflow at extreme scales.
        largest = matrix.abs().amax() if matrix.numel() else matrix.new_zeros(())
        if bool(((matrix - matrix.mT).abs() > tolerance * largest).any()):
            raise ValueError(
                "expected a symmetric matrix; its antisymmetric part is not rounding. "
                "Pass (M + M.mT) / 2 if the symmetric part is what you mean"
            )
        super().__init__(matrix.shape[0], matrix.dtype, matrix.device)
        self._matrix = matrix

    def _multiply(self, matrix: Tensor) -> Tensor:
        return self._matrix @ matrix
