"""Adapter for the conjugate gradients of sb3-contrib's TRPO."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from natgrad.testing.subjects.solver import Answer, Solver


def adapt(name: str, function: Callable[..., Any]) -> Solver:
    """A subject of ``conjugate_gradient_solver(matrix_vector_dot_fn, b, max_iter, residual_tol)``.

    Its tolerance bounds rᵀr, absolutely: it gets rtol², which is right for b of unit norm. It
    returns x alone: an end before the last iteration counts as a claim of convergence.

    Parameters
    ----------
    name
        Ignored.
    function
        ``conjugate_gradient_solver``.
    """

    def call(A: Any, b: Tensor, *, rtol: float, max_iterations: int | None = None) -> Answer:
        limit = 10 * len(b) if max_iterations is None else max_iterations
        before = A.count
        x = function(A, b, max_iter=limit, residual_tol=rtol**2)
        # It takes one product before the first iteration.
        early = A.count - before <= limit
        return Answer(x, early, "ends early" if early else "all iterations")

    def script(given: frozenset[str]) -> str:
        limit = "limit" if "max_iterations" in given else "10 * len(b)"
        return (
            "from sb3_contrib.common.utils import conjugate_gradient_solver\n"
            "torch.manual_seed(0)  # it starts from 1e-4 times a random vector\n"
            f"x = conjugate_gradient_solver(product, b, max_iter={limit}, residual_tol=rtol**2)\n"
        )

    offers = frozenset({"device", "krylov", "least error", "max_iterations"})
    return Solver("sb3_contrib.conjugate_gradient_solver", call, offers, script)
