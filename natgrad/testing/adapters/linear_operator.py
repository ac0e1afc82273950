"""Adapter for the conjugate gradients of linear_operator, which gpytorch uses."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from natgrad.testing.subjects.solver import Answer, Solver


def adapt(name: str, function: Callable[..., Any]) -> Solver:
    """A subject of ``linear_cg(matmul_closure, rhs, ...)``.

    It returns x alone: a NumericalWarning tells that it did not converge, a RuntimeError that it
    met NaN.

    Parameters
    ----------
    name
        Ignored.
    function
        ``linear_cg``.
    """

    def call(
        A: Any,
        b: Tensor,
        *,
        rtol: float,
        x0: Tensor | None = None,
        preconditioner: Tensor | None = None,
        max_iterations: int | None = None,
    ) -> Answer:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                x = function(
                    A,
                    b,
                    tolerance=rtol,
                    initial_guess=x0,
                    max_tridiag_iter=0,
                    max_iter=10 * len(b) if max_iterations is None else max_iterations,
                    preconditioner=None if preconditioner is None else preconditioner.matmul,
                )
            except RuntimeError as error:
                if "NaNs encountered" not in str(error):
                    raise
                return Answer(torch.zeros_like(b), False, str(error)[:60])
        warned = [str(each.message) for each in caught if "CG" in str(each.message)]
        return Answer(x, not warned, warned[0][:60] if warned else "no warning")

    def script(given: frozenset[str]) -> str:
        limit = "limit" if "max_iterations" in given else "10 * len(b)"
        arguments = f"tolerance=rtol, max_iter={limit}, max_tridiag_iter=0"
        arguments += ", initial_guess=x0" if "x0" in given else ""
        arguments += ", preconditioner=P.matmul" if "preconditioner" in given else ""
        return (
            "import warnings\n"
            "from linear_operator.utils.linear_cg import linear_cg\n"
            "with warnings.catch_warnings(record=True) as caught:\n"
            '    warnings.simplefilter("always")\n'
            f"    x = linear_cg(product, b, {arguments})\n"
            'print("warns of no convergence:", any("CG" in str(w.message) for w in caught))\n'
        )

    traits = {"device", "krylov", "least error", "columns"}
    offers = frozenset({"x0", "preconditioner", "max_iterations", *traits})
    return Solver("linear_operator.linear_cg", call, offers, script)
