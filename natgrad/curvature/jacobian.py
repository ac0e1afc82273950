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

from natgrad.curvature.differentiation import gradients
from natgrad.curvature.slots import Slots

ROWS = 64  # of J, or columns, in one vectorised backward pass


class Jacobian:
    """J = ∂outputs/∂parameters, known by ``forward`` (J v) and ``transpose`` (Jᵀ u).

    Frozen and unused parameters have zero columns, outputs without a graph zero rows; ``reaches``
    says whether any output depends on any of the parameters.
    """

    def __init__(self, outputs: Sequence[Tensor], slots: Slots) -> None:
        self._outputs = tuple(outputs)
        self._slots = slots
        self._live = [output for output in self._outputs if output.requires_grad]
        self._owners: list[Tensor] = []
        self._transposed: list[Tensor] = []
        self.reaches = False
        if not self._live or not slots.trained:
            return
        with torch.enable_grad():
            # Jᵀz is linear in z, but not every backward formula of torch is written so (that of
            # logcumsumexp takes a logarithm of it): a z without zeros or structure is safe.
            generator = torch.Generator(self._live[0].device).manual_seed(0)
            self._dual = [
                torch.empty_like(output).uniform_(0.5, 1.5, generator=generator).requires_grad_()
                for output in self._live
            ]
            transposed = gradients(self._live, slots.trained, self._dual, create_graph=True)
        for parameter, piece in zip(slots.trained, transposed, strict=True):
            if piece is not None and piece.requires_grad:
                self._owners.append(parameter)
                self._transposed.append(piece)
        self.reaches = bool(self._owners)

    def forward(self, vector: Tensor) -> tuple[Tensor, ...]:
        """J v for v (n,): one tensor for each output, of its shape."""
        if not self.reaches:
            return tuple(torch.zeros_like(output) for output in self._outputs)
        pieces = self._slots.pieces(vector, self._owners)
        tangents = iter(gradients(self._transposed, self._dual, pieces))
        return tuple(
            torch.zeros_like(output) if tangent is None else tangent
            for output in self._outputs
            for tangent in [next(tangents) if output.requires_grad else None]
        )

    def transpose(self, cotangents: Sequence[Tensor]) -> Tensor:
        """Jᵀ u, (n,), for one cotangent for each output, of its shape."""
        if not self.reaches:
            return self._slots.vector((), ())
        along = [
            cotangent
            for output, cotangent in zip(self._outputs, cotangents, strict=True)
            if output.requires_grad
        ]
        return self._slots.vector(self._owners, gradients(self._live, self._owners, along))

    def to_dense(self) -> Tensor:
        """J (m, n), the outputs flattened and side by side: m backward passes or n products with
        J, whichever are fewer, ``ROWS`` at a time."""
        m, n = sum(output.numel() for output in self._outputs), self._slots.size
        if m <= n:
            blocks = [jacobian_rows(output, self._slots) for output in self._outputs]
            return torch.cat(blocks)
        like = self._slots.parameters[0]
        columns = []
        for start in range(0, n, ROWS):
            basis = torch.zeros(min(ROWS, n - start), n, dtype=like.dtype, device=like.device)
            basis[:, start:].fill_diagonal_(1)
            columns.append(self._columns(basis))
        return torch.cat(columns, dim=1)

    def _columns(self, basis: Tensor) -> Tensor:
        """J Vᵀ (m, k) for the rows of V (k, n)."""
        if not self.reaches:
            m = sum(output.numel() for output in self._outputs)
            return basis.new_zeros(m, len(basis))
        along = [
            basis[:, self._slots.span(owner)].reshape(len(basis), *owner.shape)
            for owner in self._owners
        ]
        tangents = iter(torch.autograd.grad(
            self._transposed, self._dual, along, retain_graph=True, allow_unused=True,
            is_grads_batched=True,
        ))  # fmt: skip
        found = []
        for output in self._outputs:
            tangent = next(tangents) if output.requires_grad else None
            if tangent is None:
                tangent = basis.new_zeros(len(basis), output.numel())
            found.append(tangent.reshape(len(basis), -1))
        return torch.cat(found, dim=1).mT


def jacobian_rows(output: Tensor, slots: Slots) -> Tensor:
    """∂output/∂parameters (m, n), the output flattened: m backward passes, ``ROWS`` at a time."""
    rows = output.new_zeros(output.numel(), slots.size)
    if not output.requires_grad:
        return rows
    with torch.enable_grad():
        flat = output.reshape(-1)
    for start in range(0, len(flat), ROWS):
        picked = output.new_zeros(min(ROWS, len(flat) - start), len(flat))
        picked[:, start:].fill_diagonal_(1)
        found = torch.autograd.grad(
            flat, slots.trained, picked, retain_graph=True, allow_unused=True,
            is_grads_batched=True,
        )  # fmt: skip
        for parameter, piece in zip(slots.trained, found, strict=True):
            if piece is not None:
                span = slots.span(parameter)
                rows[start : start + len(picked), span] = piece.reshape(len(picked), -1)
    return rows
