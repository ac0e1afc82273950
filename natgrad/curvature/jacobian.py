"""Jacobian products in both directions from one recorded graph.

With y = f(θ), y (m,) and θ (n,), the function z ↦ ∇_θ(y·z) = Jᵀz is linear in z. Recording it once
with its own graph (a backward pass that can itself be differentiated) gives

    J v   = ∂/∂z [ (Jᵀz)·v ]      one backward pass through that graph
    Jᵀ u                          one backward pass through the first graph

so that no later product runs the network forward again. Set-up: one backward pass. A product pair:
two backward passes, about one gradient (forward + backward) of the same model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from natgrad.flat import flatten, unflatten


class Jacobian:
    """J = ∂outputs/∂parameters, known by ``forward`` (J v) and ``transpose`` (Jᵀ u).

    Frozen and unused parameters have zero columns, outputs without a graph zero rows.
    Raises ``ValueError`` where no output depends on any of the parameters, or one is named twice.
    """

    def __init__(self, outputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
        self._outputs = tuple(outputs)
        self._parameters = tuple(parameters)
        if len(set(map(id, self._parameters))) != len(self._parameters):
            raise ValueError("a parameter is listed twice; list a tied parameter once")
        self._live_outputs = [output for output in self._outputs if output.requires_grad]
        trained = [parameter for parameter in self._parameters if parameter.requires_grad]
        if not self._live_outputs or not trained:
            raise ValueError(
                f"{len(self._live_outputs)} of {len(self._outputs)} outputs carry a graph and "
                f"{len(trained)} of {len(self._parameters)} parameters have requires_grad=True; "
                "compute the outputs with gradients enabled, from these very parameters"
            )
        with torch.enable_grad():
            # Jᵀz is linear in z, so that any value of z records the same graph.
            self._dual = [
                torch.zeros_like(output, requires_grad=True) for output in self._live_outputs
            ]
            transposed = _gradients(self._live_outputs, trained, self._dual, create_graph=True)
        reached = [
            (parameter, piece)
            for parameter, piece in zip(trained, transposed, strict=True)
            if piece is not None and piece.requires_grad
        ]
        if not reached:
            raise ValueError(
                "the outputs depend on none of the parameters; pass the parameters that "
                "the model was called with, not copies of them"
            )
        self._reached = [parameter for parameter, _ in reached]
        self._transposed = [piece for _, piece in reached]

    def forward(self, vector: Tensor) -> tuple[Tensor, ...]:
        """J v for v (n,): one tensor for each output, of its shape."""
        pieces = self._select(unflatten(vector, self._parameters))
        tangents = iter(_gradients(self._transposed, self._dual, pieces))
        return tuple(
            torch.zeros_like(output) if tangent is None else tangent
            for output in self._outputs
            for tangent in [next(tangents) if output.requires_grad else None]
        )

    def transpose(self, cotangents: Sequence[Tensor]) -> Tensor:
        """Jᵀ u, (n,), for one cotangent for each output, of its shape."""
        live = [
            cotangent
            for output, cotangent in zip(self._outputs, cotangents, strict=True)
            if output.requires_grad
        ]
        gradients = dict(
            zip(map(id, self._reached), _gradients(self._live_outputs, self._reached, live),
                strict=True)
        )  # fmt: skip
        pieces = [gradients.get(id(parameter)) for parameter in self._parameters]
        return flatten(
            torch.zeros_like(parameter) if piece is None else piece
            for parameter, piece in zip(self._parameters, pieces, strict=True)
        )

    def _select(self, pieces: Sequence[Tensor]) -> list[Tensor]:
        by_parameter = dict(zip(map(id, self._parameters), pieces, strict=True))
        return [by_parameter[id(parameter)] for parameter in self._reached]


def _gradients(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    *,
    create_graph: bool = False,
) -> tuple[Tensor | None, ...]:
    try:
        return torch.autograd.grad(
            outputs, inputs, weights, retain_graph=True, create_graph=create_graph,
            allow_unused=True,
        )  # fmt: skip
    except RuntimeError as error:
        message = str(error)
        if "modified by an inplace operation" in message:
            raise RuntimeError(
                "the parameters (or the data) were changed in place after this operator was built; "
                "curvature belongs to one point: build a new operator at the new parameters"
            ) from error
        if "backward through the graph a second time" in message:
            raise RuntimeError(
                "the graph of these outputs was freed by an earlier backward pass; pass "
                "retain_graph=True to that one, or build the operator from a fresh forward pass"
            ) from error
        raise
