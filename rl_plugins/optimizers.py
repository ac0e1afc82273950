"""First-order optimizers by name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable

import torch
from torch import Tensor

from rl_plugins.errors import UsageError, suggestion


def make_optimizer(
    name: str, parameters: Iterable[Tensor], learning_rate: float
) -> torch.optim.Optimizer:
    """An optimizer of ``torch.optim`` by its name, or any other as "package.module:Class".

    Raises :class:`UsageError` for an unknown name, or a class that is no optimizer.
    """
    module_name, _, class_name = name.rpartition(":")
    try:
        module = importlib.import_module(module_name or "torch.optim")
    except ImportError as error:
        raise UsageError(f"optimizer {name!r}: cannot import {module_name!r}: {error}") from error
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        known = [key for key, value in vars(module).items() if isinstance(value, type)]
        raise UsageError(f"unknown optimizer {name!r}; {suggestion(class_name, known)}")
    if "fused" in inspect.signature(found).parameters:
        # One kernel a step: small networks spend their time in launches.
        return found(parameters, lr=learning_rate, fused=True)  # type: ignore[call-arg]
    return found(parameters, lr=learning_rate)  # type: ignore[call-arg]
