"""Where an optimizer's curvature comes from: the caller, or a model and the batches it has seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from natgrad.curvature import LinearOperator, Submatrix
from natgrad.optim.observed_model import ObservedModel
from natgrad.optim.optimizer import Parameters, Start

Curvature = Callable[[], LinearOperator]
# (forward, data, parameters) -> operator, as the constructors in natgrad.curvature take them.
Make = Callable[[Callable[[Any], Any], Any, list[Tensor]], LinearOperator]


def require_one_source(
    params: nn.Module | Parameters, model: nn.Module | None, curvature: Curvature | None, form: str
) -> None:
    """Raise ``ValueError`` unless there is either a model or a curvature callable."""
    if (curvature is None) == (model is None and not isinstance(params, nn.Module)):
        name = form.split("(")[0]
        raise ValueError(
            f"say once where curvature comes from: {form}, with model=... for parameter groups, or "
            f"{name}(parameters, curvature=lambda: operator)"
        )


def operator_of(
    curvature: Curvature | None,
    observed: ObservedModel | None,
    make: Make,
    parameters: list[Tensor],
    active: list[Tensor],
) -> LinearOperator:
    """The operator over the ``active`` ones of ``parameters``, those that have a gradient.

    Raises ``ValueError`` where what ``curvature()`` returns is of another size.
    """
    if curvature is None:
        assert observed is not None
        return observed.curvature(lambda forward, data: make(forward, data, active))
    with torch.enable_grad():
        operator = curvature()
    sizes = sum(p.numel() for p in parameters), sum(p.numel() for p in active)
    if operator.shape[0] == sizes[1]:
        return operator
    if operator.shape[0] != sizes[0]:
        raise ValueError(
            f"curvature() returned an operator of shape {operator.shape}; the optimizer has "
            f"{sizes[0]} parameters, {sizes[1]} of them with a gradient"
        )
    wanted = set(active)
    kept = [torch.full((p.numel(),), p in wanted, device=p.device) for p in parameters]
    return Submatrix(operator, torch.cat(kept))


def require_reached(
    curvature: LinearOperator, start: Start, observed: ObservedModel | None
) -> None:
    """Raise ``ValueError`` where a gradient is not zero in a parameter that the curvature does not
    know: its row is zero, and the step there would be the gradient over the damping."""
    if curvature.reached is None:
        return
    known = set(curvature.reached)
    names: dict[Tensor, str] = {}
    if observed is not None:
        names = {parameter: name for name, parameter in observed.model.named_parameters()}
    missing = [
        names.get(p, f"a parameter of shape {tuple(p.shape)} outside the model")
        for p in start.parameters
        if p not in known and p.grad is not None and bool(p.grad.any())
    ]
    if missing:
        raise ValueError(
            f"the gradient reaches {', '.join(missing)}, but the curvature does not: the outputs "
            "that it is taken of do not depend on them (a weight in the loss itself, an output "
            "that the likelihood leaves out, a layer in a reentrant checkpoint). Give them to "
            "another optimizer, or give curvature=... that knows them"
        )
