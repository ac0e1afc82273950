"""First-order optimizers by name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from rl_plugins.errors import UsageError, suggestion
from rl_plugins.imports import is_qualified


def make_optimizer(
    name: str, parameters: Iterable[Tensor], learning_rate: float
) -> torch.optim.Optimizer:
    """A first-order optimizer by its name.

    Parameters
    ----------
    name
        A class of ``torch.optim``, or any other as "package.module:Class".
    parameters
        The tensors that it moves.
    learning_rate
        Passed as ``lr``.

    Raises
    ------
    UsageError
        For an unknown name, a class that is no optimizer, and one that cannot work on these
        parameters or needs a closure.
    """
    module_name, colon, class_name = name.rpartition(":")
    if colon and not is_qualified(name):
        raise UsageError(
            f"optimizer {name!r}: cannot import {module_name!r}: expected package.module:Class"
        )
    try:
        module = importlib.import_module(module_name or "torch.optim")
    except (ImportError, TypeError) as error:
        raise UsageError(f"optimizer {name!r}: cannot import {module_name!r}: {error}") from error
    known = {key: value for key, value in vars(module).items() if _is_optimizer(value)}
    if class_name not in known:
        raise UsageError(f"unknown optimizer {name!r}; {suggestion(class_name, known)}")
    found = known[class_name]
    closure = inspect.signature(found.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UsageError(f"optimizer {name!r} evaluates the objective anew; take a first-order one")
    # fused: one kernel a step; small networks spend their time in launches.
    options = {"fused": True} if "fused" in inspect.signature(found).parameters else {}
    try:
        optimizer: torch.optim.Optimizer = found(parameters, lr=learning_rate, **options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"optimizer {name!r}: {error}") from error
    return optimizer


def _is_optimizer(value: Any) -> bool:
    base = torch.optim.Optimizer
    return isinstance(value, type) and issubclass(value, base) and value is not base
