"""What a solver found, and an honest account of how well."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

V = TypeVar("V", Tensor, "NDArray[np.floating[Any]]")


class Status(Enum):
    """How a solve ended; the value says what the caller can do about it."""

    CONVERGED = "the true residual passed the tolerance"
    MAX_ITERATIONS = (
        "stopped at max_iterations above the tolerance: allow more, loosen rtol, add damping or "
        "a preconditioner; a truncated solution is still a descent direction"
    )
    BOUNDARY = "the step reached the trust-region radius"
    NEGATIVE_CURVATURE = (
        "vᵀA v <= 0 to rounding along `direction`: A (or the preconditioner) is not positive "
        "definite; add damping, or use a solver for indefinite systems"
    )
    STAGNATED = (
        "the recursive residual passed but the true one did not, and restarts brought no progress: "
        "rtol is below what this dtype can reach at this condition; use float64 or loosen rtol"
    )
    NONFINITE = (
        "NaN or infinity in A, b, x0 or the preconditioner, or a solution outside the dtype's "
        "range; x is the last iterate before it"
    )
    ZERO_RHS = "b is exactly zero, and so is x"


@dataclass(frozen=True)
class Solution(Generic[V]):
    """``x`` with A x ≈ b, (n,), in the kind, dtype and device of b.

    ``Ax`` is A x: xᵀA x is ``x @ Ax``, at no further product. Where the status is CONVERGED or
    STAGNATED it is the operator's own product to rounding, otherwise b minus the recursive
    residual. ``residual_norm`` is ‖b − Ax‖₂ of that ``Ax``. ``products`` counts products with A.
    ``direction`` is a direction of nonpositive curvature where one was met, else None.
    """

    x: V
    Ax: V
    status: Status
    iterations: int
    products: int
    residual_norm: float
    direction: V | None = None
