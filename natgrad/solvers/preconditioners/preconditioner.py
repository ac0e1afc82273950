"""A preconditioner for the solvers: v ↦ M⁻¹ v on torch vectors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Preconditioner:
    """An operator with ``P @ v = function(v)``, for torch and NumPy right-hand sides.

    Parameters
    ----------
    function
        v ↦ M⁻¹ v on torch vectors (n,).
    size
        n.
    device
        Where the vectors live.
    """

    def __init__(
        self, function: Callable[[Tensor], Tensor], size: int, device: torch.device
    ) -> None:
        self.shape = (size, size)
        self.device = device
        self._function = function

    def __matmul__(self, vector: Tensor) -> Tensor:
        return self._function(vector)
