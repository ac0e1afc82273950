"""The submatrix of an operator in some of its coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

from natgrad.curvature.operator import LinearOperator


class Submatrix(LinearOperator):
    """The rows and columns Pᵀ A P (k, k) of an operator A in k of its n coordinates.

    Parameters
    ----------
    operator
        A (n, n).
    kept
        A boolean mask (n,), True for the k coordinates to keep.

    Raises
    ------
    ValueError
        If ``kept`` is not a boolean mask (n,).

    Notes
    -----
    Cost: one product of A a product.

    Examples
    --------
    >>> from natgrad.curvature import Dense
    >>> A = Dense(torch.tensor([[1.0, 2.0], [2.0, 5.0]]))
    >>> Submatrix(A, torch.tensor([False, True])).to_dense()
    tensor([[5.]])
    """

    def __init__(self, operator: LinearOperator, kept: Tensor) -> None:
        if kept.shape != operator.shape[:1] or kept.dtype != torch.bool:
            raise ValueError(
                f"expected a boolean mask ({operator.shape[0]},), got {tuple(kept.shape)} of "
                f"{kept.dtype}"
            )
        super().__init__(int(kept.sum()), operator.dtype, operator.device)
        self._operator, self._kept = operator, kept

    @property
    def reached(self) -> tuple[Tensor, ...] | None:
        return self._operator.reached

    def _multiply(self, matrix: Tensor) -> Tensor:
        whole = matrix.new_zeros(self._operator.shape[0], matrix.shape[1])
        whole[self._kept] = matrix
        return (self._operator @ whole)[self._kept]
