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
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from natgrad.autodiff.differentiation import NotTwiceDifferentiable, gradients, many_gradients
from natgrad.autodiff.graph import Graph
from natgrad.autodiff.hooks import ROUNDING, not_linear
from natgrad.autodiff.slots import Slots

ROWS = 64  # of J, or columns, in one vectorised backward pass


class Jacobian:
    """J = ∂outputs/∂parameters, known by ``forward`` (J v) and ``transpose`` (Jᵀ u).

    Frozen and unused parameters have zero columns, outputs without a graph zero rows; ``reached``
    are the parameters that some output depends on. Hooks of parameters and modules are not run.
    :meth:`record` prepares products with J; the first of them does where nobody did.

    Raises :class:`NotTwiceDifferentiable` for a graph that ends in a reentrant checkpoint.
    """

    def __init__(self, outputs: Sequence[Tensor], slots: Slots) -> None:
        self._outputs = tuple(outputs)
        self._slots = slots
        self._live = [output for output in self._outputs if output.requires_grad]
        self._graph = Graph(self._live)
        self.reached = [p for p in slots.trained if self._graph.reaches(p)]
        self._dual: list[Tensor] = []
        self._owners: list[Tensor] = []
        self._transposed: list[Tensor] | None = None
        self._sound = False

    @property
    def reaches(self) -> bool:
        """Whether any output depends on any of the parameters."""
        return bool(self.reached)

    def unhooked(self) -> AbstractContextManager[None]:
        """Inside, backward passes through this graph run no hooks of parameters and modules."""
        return self._graph.unhooked(self.reached)

    def record(self) -> None:
        """Record z ↦ Jᵀz with its own graph. Cost: one backward pass; for the first graph of a
        model's structure some more, to see that it is a differentiable linear map.

        Raises :class:`NotTwiceDifferentiable` where it is not.
        """
        if self._transposed is not None or not self.reaches:
            return
        self.require_transpose()
        try:
            self._record()
            if self._graph.custom:
                self._graph.once(self.reached[0], self._adjoint)
        except NotTwiceDifferentiable:  # nobody may go on with half a record
            self._transposed, self._owners = None, []
            raise

    def require_transpose(self) -> None:
        """Raise :class:`NotTwiceDifferentiable` where a hook on an activation, or a Function that
        is not torch's, makes a backward pass something else than a linear map. Cost: for the first
        graph of a model's structure four backward passes seen by Python."""
        if self.reaches and not self._sound:
            self._graph.once(self.reached[0], self._linear)
            self._sound = True

    def verify(self) -> None:
        """Raise as :meth:`record` does, whatever was tried before."""
        if self.reaches:
            self._linear()
            self._record()
            if self._graph.custom:
                self._adjoint()

    def _linear(self) -> None:
        weights = self._weights()
        with self.unhooked():
            self._graph.require_linear(self._live, self.reached, weights)

    def _record(self) -> None:
        self._dual = [weight.requires_grad_() for weight in self._weights()]
        with torch.enable_grad(), self.unhooked():
            pieces = gradients(self._live, self.reached, self._dual, create_graph=True)
        self._transposed = []
        for parameter, piece in zip(self.reached, pieces, strict=True):
            if piece is None:
                continue
            if piece.requires_grad:
                self._owners.append(parameter)
                self._transposed.append(piece)
            elif bool(piece.any()):  # of torch's own operations, only zeros come without a graph
                raise not_linear(self._graph.custom)
        self._graph.require_recorded(self._transposed)

    def _weights(self) -> list[Tensor]:
        # Jᵀz is linear in z, but not every backward formula of torch is written so (that of
        # logcumsumexp takes a logarithm of it): a z without zeros or structure is safe.
        generator = torch.Generator(self._live[0].device).manual_seed(0)
        return [
            torch.empty_like(output, requires_grad=False).uniform_(0.5, 1.5, generator=generator)
            for output in self._live
        ]

    def forward(self, vector: Tensor) -> tuple[Tensor, ...]:
        """J v for v (n,): one tensor for each output, of its shape."""
        self.record()
        if not self._owners:
            return tuple(torch.zeros_like(output) for output in self._outputs)
        assert self._transposed is not None
        pieces = self._slots.pieces(vector, self._owners)
        with self.unhooked():
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
        self.require_transpose()
        along = [
            cotangent
            for output, cotangent in zip(self._outputs, cotangents, strict=True)
            if output.requires_grad
        ]
        with self.unhooked():
            return self._slots.vector(self.reached, gradients(self._live, self.reached, along))

    def _adjoint(self) -> None:
        """Raise unless ⟨J v, u⟩ = ⟨v, Jᵀu⟩ for random v and u: where a Function of its own writes a
        backward pass that loses a part of its graph, the recorded one is not J."""
        like = self.reached[0]
        generator = torch.Generator(like.device).manual_seed(1)
        for _ in range(3):  # one direction may miss what depends on a sign
            self._adjoint_along(like, generator)

    def _adjoint_along(self, like: Tensor, generator: torch.Generator) -> None:
        def random(shape: torch.Size, dtype: torch.dtype) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype, device=like.device)

        v = random(torch.Size([self._slots.size]), like.dtype)
        images = self.forward(v)
        # Along J v, where an error of J shows undiluted, and across it, where J v may be 0.
        noise = [random(image.shape, image.dtype) for image in images]
        size, spread = _norm(images), _norm(noise)
        unit = torch.where(size > 0, size, 1.0)
        # Unequal shares, which do not cancel where there is one output.
        u = [(y / unit + z / (2 * spread)).to(y) for y, z in zip(images, noise, strict=True)]
        pulled = self.transpose(u)
        difference = _inner([v], [pulled]) - _inner(images, u)
        # At an optimum both are the rounding of 0: what three times u makes of it tells how much.
        rounding = _norm([self.transpose([3 * piece for piece in u]) / 3 - pulled])
        allowed = torch.finfo(like.dtype).eps ** 0.5 * torch.maximum(size, _norm([pulled]))
        allowed = allowed + ROUNDING * rounding
        # Values that are not finite are not this comparison's to judge.
        if bool(difference.abs() > allowed):
            raise not_linear(self._graph.custom)

    def to_dense(self) -> Tensor:
        """J (m, n), the outputs flattened and side by side: m backward passes or n products with
        J, whichever are fewer, ``ROWS`` at a time; backward passes where there are no products."""
        self.require_transpose()
        m, n = sum(output.numel() for output in self._outputs), self._slots.size
        if m <= n:
            return torch.cat([self.rows(output, self._slots) for output in self._outputs])
        try:
            self.record()
        except NotTwiceDifferentiable:  # rows need one derivative only
            return torch.cat([self.rows(output, self._slots) for output in self._outputs])
        like = self._slots.parameters[0]
        columns = []
        for start in range(0, n, ROWS):
            basis = torch.zeros(min(ROWS, n - start), n, dtype=like.dtype, device=like.device)
            basis[:, start:].fill_diagonal_(1)
            columns.append(self._columns(basis))
        return torch.cat(columns, dim=1)

    def _columns(self, basis: Tensor) -> Tensor:
        """J Vᵀ (m, k) for the rows of V (k, n)."""
        if not self._owners:
            m = sum(output.numel() for output in self._outputs)
            return basis.new_zeros(m, len(basis))
        along = [
            basis[:, self._slots.span(owner)].reshape(len(basis), *owner.shape)
            for owner in self._owners
        ]
        assert self._transposed is not None
        with self.unhooked():
            tangents = iter(
                many_gradients(
                    self._transposed, self._dual, along, vectorised=not self._graph.custom
                )
            )
        found = []
        for output in self._outputs:
            tangent = next(tangents) if output.requires_grad else None
            if tangent is None:
                tangent = basis.new_zeros(len(basis), output.numel())
            found.append(tangent.reshape(len(basis), -1))
        return torch.cat(found, dim=1).mT

    def rows(self, output: Tensor, slots: Slots) -> Tensor:
        """∂output/∂parameters (m, n) for one of the outputs, flattened, and any of the parameters:
        m backward passes, ``ROWS`` at a time."""
        self.require_transpose()
        rows = output.new_zeros(output.numel(), slots.size)
        if not output.requires_grad:
            return rows
        with torch.enable_grad():
            flat = output.reshape(-1)
        for start in range(0, len(flat), ROWS):
            picked = output.new_zeros(min(ROWS, len(flat) - start), len(flat))
            picked[:, start:].fill_diagonal_(1)
            with self.unhooked():
                found = many_gradients(
                    [flat], slots.trained, [picked], vectorised=not self._graph.custom
                )
            for parameter, piece in zip(slots.trained, found, strict=True):
                if piece is not None:
                    span = slots.span(parameter)
                    rows[start : start + len(picked), span] = piece.reshape(len(picked), -1)
        return rows


def _inner(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    return torch.stack(
        [(a.double() * b.double()).sum() for a, b in zip(left, right, strict=True)]
    ).sum()


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return _inner(tensors, tensors).sqrt()
