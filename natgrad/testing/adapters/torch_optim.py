"""The optimizers of torch.optim."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from natgrad.testing.subjects.optimizer import Optimizer

FIRST_ORDER = frozenset({"closure", "plain", "groups", "deterministic", "objectives"})
# Where the lr is no more than the factor of the first step.
PROPORTIONAL = frozenset({"Adam", "AdamW", "SGD", "Adagrad", "RMSprop", "Adamax", "NAdam", "RAdam"})


def adapt(name: str, kind: Callable[..., Any], **settings: Any) -> Optimizer:
    """A class of torch.optim with these settings, its own where none are given; ``lr`` is 1e-2.

    LBFGS is taken with its line search, strong Wolfe, and 20 iterations a step: what it claims is
    that of a minimiser. It takes one group and no step without a closure.
    """
    if name == "LBFGS":
        given = {"line_search_fn": "strong_wolfe", **settings}
        searching = {"closure", "deterministic", "objectives"}
        if given["line_search_fn"]:
            searching |= {"search", "minimiser"}
        return Optimizer(
            "torch.optim.LBFGS",
            lambda model: kind(model.parameters(), **given),
            frozenset(searching),
            script=_script("LBFGS", given),
        )
    given = {"lr": 1e-2, **settings}

    def make(model: nn.Module) -> Any:
        return kind(model.parameters(), **given)

    offers = FIRST_ORDER | ({"proportional"} if name in PROPORTIONAL else set())
    traits = Optimizer.of(make, offers).offers
    return Optimizer(f"torch.optim.{name}", make, traits, script=_script(name, given))


def _script(name: str, given: dict[str, Any]) -> str:
    settings = ", ".join(f"{key}={value!r}" for key, value in given.items())
    return f"torch.optim.{name}(parameters, {settings})"
