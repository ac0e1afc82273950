"""Conversion of symmetric operators to SciPy's ``LinearOperator`` and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator as ScipyOperator


def to_scipy(operator: Any) -> ScipyOperator:
    """Wrap an operator (anything with shape, dtype, device and ``@``) for SciPy."""
    from scipy.sparse.linalg import LinearOperator as ScipyOperator

    def multiply(vector: Any) -> Any:
        # SciPy passes (n,), (n, 1) and (n, k), in any floating-point dtype.
        if np.iscomplexobj(vector):
            raise TypeError("expected a real vector: the operator is real")
        operand = torch.as_tensor(vector, dtype=operator.dtype, device=operator.device)
        return (operator @ operand).cpu().numpy()

    numpy_dtype = torch.empty(0, dtype=operator.dtype).numpy().dtype
    return ScipyOperator(
        shape=operator.shape, matvec=multiply, rmatvec=multiply, matmat=multiply, dtype=numpy_dtype
    )


def scipy_product(
    operator: ScipyOperator,
) -> tuple[Callable[[Tensor], Tensor], int, torch.dtype]:
    """Return the product v ↦ A v on CPU tensors, the size n and the dtype of a SciPy operator.

    Raises ``ValueError`` unless it is square, ``TypeError`` unless it is real floating point.
    """
    rows, columns = operator.shape
    if rows != columns:
        raise ValueError(f"expected a square operator, got shape {operator.shape}")
    if not np.issubdtype(operator.dtype, np.floating):
        raise TypeError(f"expected a real floating-point operator, got {operator.dtype}")
    dtype = torch.from_numpy(operator.dtype.type([0])).dtype

    def multiply(vector: Tensor) -> Tensor:
        return torch.as_tensor(operator @ vector.numpy(), dtype=dtype)

    return multiply, rows, dtype
