"""Adapter for SciPy's iterative solvers."""

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
    """A subject of a solver in scipy.sparse.linalg.

    ``atol`` is 0 where the solver takes it, so that only the relative tolerance counts.

    Parameters
    ----------
    name
        The solver's name.
    function
        ``function(A, b, rtol=, x0=, M=, maxiter=, callback=) -> (x, info)``.
    """
    atol = {} if name == "minres" else {"atol": 0.0}

    def call(
        A: Any,
        b: Tensor,
        *,
        rtol: float,
        x0: Tensor | None = None,
        preconditioner: Tensor | None = None,
        max_iterations: int | None = None,
    ) -> Answer:
        from scipy.sparse.linalg import LinearOperator

        iterations = 0

        def count(_: Any) -> None:
            nonlocal iterations
            iterations += 1

        def multiply(v: Any) -> Any:
            return (A @ torch.from_numpy(np.array(v).ravel())).numpy()

        dtype = b.numpy().dtype
        operator = LinearOperator(A.shape, multiply, dtype=dtype)
        # The solver's account is x and info; NumPy's warnings of divisions by zero are not.
        with np.errstate(all="ignore"):
            x, info = function(
                operator,
                b.numpy(),
                rtol=rtol,
                maxiter=max_iterations,
                callback=count,
                x0=None if x0 is None else x0.numpy(),
                M=None if preconditioner is None else preconditioner.numpy(),
                **atol,
            )
        x = torch.from_numpy(np.asarray(x, dtype=dtype))
        return Answer(x, info == 0, f"info {info}", iterations)

    offers = TRAITS.get(name, frozenset({"krylov"}))
    keywords = {"x0", "preconditioner", "max_iterations"}

    def script(given: frozenset[str]) -> str:
        arguments = "rtol=rtol" + ("" if name == "minres" else ", atol=0.0")
        arguments += ", x0=x0.numpy()" if "x0" in given else ""
        arguments += ", M=P.numpy()" if "preconditioner" in given else ""
        arguments += ", maxiter=limit" if "max_iterations" in given else ""
        return (
            f"from scipy.sparse.linalg import LinearOperator, {name}\n"
            "operator = LinearOperator((len(b), len(b)), dtype=b.numpy().dtype,\n"
            "    matvec=lambda v: product(torch.from_numpy(v.ravel())).numpy())\n"
            f"x, info = {name}(operator, b.numpy(), {arguments})\n"
            "x = torch.from_numpy(x)\n"
            'print("info", info)\n'
        )

    return Solver(f"scipy.sparse.linalg.{name}", call, offers | keywords, script)
