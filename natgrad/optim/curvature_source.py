"""Where an optimizer's curvature comes from: the caller, or a model and the batches it has seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from natgrad import flat
from natgrad.curvature import LinearOperator, Submatrix
from natgrad.optim.observed_model import ObservedModel

Curvature = Callable[[], LinearOperator]
# (forward, data, parameters) -> operator, as the constructors in natgrad.curvature take them.
Make = Callable[[Callable[[Any], Any], Any, list[Tensor]], LinearOperator]


def operator_of(
    curvature: Curvature | None,
    observed: ObservedModel | None,
    make: Make,
    parameters: list[Tensor],
    active: list[Tensor],
) -> LinearOperator:
    """The operator over the ``active`` ones of ``parameters``, those that have a gradient.

    Raises ``ValueError`` where the operator of ``curvature()`` has another size.
    """
    if curvature is None:
        assert observed is not None
        return observed.curvature(lambda forward, data: make(forward, data, active))
    with torch.enable_grad():
        operator = curvature()
    sizes = sum(map(flat.size, parameters)), sum(map(flat.size, active))
    if operator.shape[0] == sizes[1]:
        return operator
    if operator.shape[0] != sizes[0]:
        raise ValueError(
            f"curvature() returned an operator of shape {operator.shape}; the optimizer has "
            f"{sizes[0]} parameters, {sizes[1]} of them with a gradient"
        )
    wanted = set(active)
    kept = [torch.full((flat.size(p),), p in wanted, device=p.device) for p in parameters]
    return Submatrix(operator, torch.cat(kept))
