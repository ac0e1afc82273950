"""Adapters for pytorch-minimize: its function ``minimize`` and its optimizer ``Minimizer``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor

from natgrad.testing.subjects.minimiser import Answer, Minimiser
from natgrad.testing.subjects.optimizer import Optimizer

METHODS = (
    "bfgs",
    "l-bfgs",
    "cg",
    "newton-cg",
    "newton-exact",
    "dogleg",
    "trust-ncg",
    "trust-krylov",
    "trust-exact",
)


def minimiser(method: str) -> Minimiser:
    """A subject of ``torchmin.minimize(fun, x0, method)``.

    Parameters
    ----------
    method
        One of :data:`METHODS`.
    """

    def call(value: Callable[[Tensor], Tensor], start: Tensor) -> Answer:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit.script
            from torchmin import minimize

        found = minimize(value, start, method)
        return Answer(found.x, bool(found.success), str(found.message))

    script = (
        "from torchmin import minimize\n"
        f"found = minimize(f, x, {method!r})\n"
        "print(found.success, found.message, found.x)"
    )
    return Minimiser(f"torchmin.minimize, {method}", call, script=script)


def adapt(name: str, kind: Callable[..., Any], **settings: Any) -> Optimizer | Minimiser:
    """A subject of ``minimize``, or of ``Minimizer``, which calls ``backward`` itself.

    Parameters
    ----------
    name
        "minimize" or "Minimizer".
    kind
        The function or the class.
    **settings
        ``method``, l-bfgs by default, and other arguments of ``Minimizer``; ``max_iter`` is 20
        where it is not given.
    """
    method = settings.pop("method", "l-bfgs")
    if name == "minimize":
        return minimiser(method)
    given = {"max_iter": 20, **settings}
    return Optimizer(
        f"torchmin.Minimizer, {method}",
        lambda model: kind(model.parameters(), method=method, **given),
        frozenset({"bare closure", "deterministic", "search", "minimiser", "objectives"}),
        script="from torchmin import Minimizer\n"
        f"Minimizer(parameters, method={method!r}, max_iter={given['max_iter']})",
    )
