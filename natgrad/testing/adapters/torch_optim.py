"""Adapter for the optimizers of torch.optim."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from natgrad.testing.subjects.optimizer import Optimizer

FIRST_ORDER = frozenset({"closure", "plain", "groups", "deterministic", "objectives"})
# The first step of these is proportional to lr.
PROPORTIONAL = frozenset({"Adam", "AdamW", "SGD", "Adagrad", "RMSprop", "Adamax", "NAdam", "RAdam"})


def adapt(name: str, kind: Callable[..., Any], **settings: Any) -> Optimizer:
    """A subject of a class in torch.optim.

    LBFGS has its strong Wolfe line search by default, and then claims to be a minimiser; it takes
    one group, and no step without a closure.

    Parameters
    ----------
    name
        The name of the class.
    kind
        The class.
    **settings
        Arguments of the class; ``lr`` is 1e-2 where it is not given, except for LBFGS.
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
