"""Any function v ↦ A v as an operator."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from natgrad.curvature.operator import LinearOperator


class FunctionOperator(LinearOperator):
    """The operator whose product is ``function(v)``, v (n,); symmetry is the caller's promise.

    >>> (FunctionOperator(lambda v: 2 * v, 3) @ torch.ones(3)).tolist()
    [2.0, 2.0, 2.0]
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        size: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(size, dtype, torch.device(device))
        self._function = function

    def _multiply(self, matrix: Tensor) -> Tensor:
        products = torch.zeros_like(matrix)
        for column in range(matrix.shape[1]):
            vector = matrix[:, column].contiguous()
            product = self._function(vector)
            if product.shape != vector.shape or product.dtype != vector.dtype:
                raise ValueError(
                    f"the function returned shape {tuple(product.shape)} of {product.dtype} for a "
                    f"vector of shape {tuple(vector.shape)} of {vector.dtype}; a square operator "
                    "keeps both"
                )
            products[:, column] = product.detach()
        return products
