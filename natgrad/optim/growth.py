"""A warning for steps that nothing measures and that make the gradient larger and larger."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

# Of the gradient's norm from one step to the next, and in how many steps in a row.
GROWTH, GROWING = 4.0, 3


class Growth:
    """What the norms of the last steps' gradients were. Warns once."""

    def __init__(self) -> None:
        self._last, self._count = 0.0, 0

    def see(self, gradient: Tensor) -> None:
        """The gradient from which an unmeasured step set out."""
        norm = float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
        self._count = self._count + 1 if self._last and norm > GROWTH * self._last else 0
        self._last = norm
        if self._count == GROWING:
            warnings.warn(
                f"{GROWING} steps in a row made the gradient more than {GROWTH:g} times as large, "
                f"to a norm of {norm:.3g}: the steps are too long, and without a closure that "
                "computes the loss nothing measures them. Is the loss a sum, where the curvature "
                'is that of a mean? Use reduction="mean", or lr=1/N; or the curvature another '
                "loss's? step(closure) goes back where the loss rises",
                stacklevel=5,
            )
