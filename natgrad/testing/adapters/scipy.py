"""SciPy's iterative solvers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from natgrad.testing.subjects.solver import Answer, Solver

TRAITS = {
    "cg": frozenset({"krylov", "least error"}),
    "minres": frozenset({"krylov", "least residual", "indefinite"}),
}


def adapt(name: str, function: Callable[..., Any]) -> Solver:
    """``function(A, b, rtol=, x0=, M=, maxiter=, callback=) -> (x, info)`` of scipy.sparse.linalg;
    ``atol`` is 0 where it is taken, so that the tolerance is the relative one."""
    atol = {} if name == "minres" else {"atol": 0.0}

    def call(
        A: Any, b: Tensor, *, rtol: float, x0: Tensor | None = None,
        preconditioner: Tensor | None = None, max_iterations: int | None = None,
    ) -> Answer:  # fmt: skip
        from scipy.sparse.linalg import LinearOperator

        iterations = 0

        def count(_: Any) -> None:
            nonlocal iterations
            iterations += 1

        def multiply(v: Any) -> Any:
            return (A @ torch.from_numpy(np.array(v).ravel())).numpy()

        dtype = b.numpy().dtype
        operator = LinearOperator(A.shape, multiply, dtype=dtype)
        # NumPy's warnings of divisions by zero are an accident, not the solver's account.
        with np.errstate(all="ignore"):
            x, info = function(
                operator, b.numpy(), rtol=rtol, maxiter=max_iterations, callback=count,
                x0=None if x0 is None else x0.numpy(),
                M=None if preconditioner is None else preconditioner.numpy(), **atol,
            )  # fmt: skip
        x = torch.from_numpy(np.asarray(x, dtype=dtype))
        return Answer(x, info == 0, f"info {info}", iterations)

    offers = TRAITS.get(name, frozenset({"krylov"}))
    keywords = {"x0", "preconditioner", "max_iterations"}
    zero = "" if name == "minres" else ", atol=0.0"
    script = (
        f"from scipy.sparse.linalg import {name}\n"
        f"x, info = {name}(A.numpy(), b.numpy(), rtol={{rtol:g}}{zero})\n"
        "x = torch.from_numpy(x)\n"
        "print('info', info)"
    )
    return Solver(f"scipy.sparse.linalg.{name}", call, offers | keywords, script)
