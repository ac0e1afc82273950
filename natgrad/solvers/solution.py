"""A solver's answer: the solution, its status and its verified residual."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

V = TypeVar("V", Tensor, "NDArray[np.floating[Any]]")


class Status(Enum):
    """How a solve ended; the value says how the caller can respond."""

    CONVERGED = "the true residual passed the tolerance"
    MAX_ITERATIONS = (
        "stopped at max_iterations above the tolerance: allow more, loosen rtol, add damping or "
        "a preconditioner; a truncated solution is still a descent direction"
    )
    BOUNDARY = "the step ended on the trust-region radius: a larger radius would lengthen it"
    NEGATIVE_CURVATURE = (
        "vᵀA v <= 0 to rounding along `direction`: A (or the preconditioner) is not positive "
        "definite; add damping, or use a solver for indefinite systems"
    )
    STAGNATED = (
        "the recursive residual passed but the true one did not, and restarts brought no progress: "
        "rtol is below what this dtype can reach at this condition; use float64 or loosen rtol"
    )
    NONFINITE = (
        "NaN or infinity in A, b, x0 or the preconditioner, or a solution, or A x, outside the "
        "dtype's range; x is the last sound iterate before it, 0 where that left the range"
    )
    ZERO_RHS = "b is exactly zero, and so is x"
    STOPPED = (
        "the rule given as `stop` ended the solve above the tolerance: a truncated solution, still "
        "a descent direction"
    )
    LEAST_SQUARES = (
        "A is singular and b outside its range: x minimises ‖b − A x‖, which is not zero; check "
        "the model behind b, or add damping"
    )


# From best to worst: the status of several columns is the worst of them.
_SEVERITY = (
    Status.ZERO_RHS,
    Status.CONVERGED,
    Status.BOUNDARY,
    Status.STOPPED,
    Status.MAX_ITERATIONS,
    Status.LEAST_SQUARES,
    Status.STAGNATED,
    Status.NEGATIVE_CURVATURE,
    Status.NONFINITE,
)


class Iterate(NamedTuple, Generic[V]):
    """One iterate, with its curvature: the quadratic model there costs no product.

    Attributes
    ----------
    x
        In the kind of b.
    xAx
        xᵀA x, a 0-d float64 tensor.
    """

    x: V
    xAx: Tensor


@dataclass(frozen=True)
class Solution(Generic[V]):
    """The answer of a solver of A x = b.

    For b of shape (n, k), ``columns`` holds one solution a column, and the other fields sum them
    up: the worst status, the most iterations, all products, the largest residual norm.

    Attributes
    ----------
    x
        A x ≈ b, in the kind, shape, dtype and device of b. The only field with a graph, where b or
        A require gradients.
    Ax
        A x: xᵀA x is ``x @ Ax``, at no further product. Where the status is CONVERGED or STAGNATED
        it is the operator's own product to rounding, otherwise b minus the recursive residual.
    status
        How the solve ended; ``status.value`` says how to respond.
    iterations, products
        The number of iterations, and of products with A.
    residual_norm
        ‖b − Ax‖₂ of this ``Ax``.
    direction
        A direction of nonpositive curvature where one was met, else None.
    multiplier
        The shift μ >= 0 that a radius adds, where the solver knows it: then (A + μ I) x ≈ b, and
        ``residual_norm`` is that system's.
    columns
        One solution for each column of a matrix b, else empty.
    iterates
        Those that the solver was asked to keep, in their order.
    """

    x: V
    Ax: V
    status: Status
    iterations: int
    products: int
    residual_norm: float
    direction: V | None = None
    multiplier: float = 0.0
    columns: tuple[Solution[V], ...] = ()
    iterates: tuple[Iterate[V], ...] = ()


def stack(columns: list[Solution[Tensor]]) -> Solution[Tensor]:
    """The solutions for the columns of a matrix as one solution (n, k).

    Parameters
    ----------
    columns
        One solution a column, at least one.
    """
    directions = [column.direction for column in columns if column.direction is not None]
    norms = [column.residual_norm for column in columns]
    return Solution(
        x=torch.stack([column.x for column in columns], dim=1),
        Ax=torch.stack([column.Ax for column in columns], dim=1),
        status=max((column.status for column in columns), key=_SEVERITY.index),
        iterations=max(column.iterations for column in columns),
        products=sum(column.products for column in columns),
        residual_norm=math.nan if any(map(math.isnan, norms)) else max(norms),
        direction=directions[0] if directions else None,
        columns=tuple(columns),
    )
