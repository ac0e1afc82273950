"""Jacobian products in both directions from one recorded graph.

With y = f(θ), y (m,) and θ (n,), the function z ↦ ∇_θ(y·z) = Jᵀz is linear in z. Recording it once
with its own graph (a backward pass that can itself be differentiated) gives

    J v   = ∂/∂z [ (Jᵀz)·v ]      one backward pass through that graph
    Jᵀ u                          one backward pass through the first graph

so that no later product runs the network forward again. Set-up costs one backward pass; a product
pair two backward passes, about one gradient (forward + backward) of the same model.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from natgrad.autodiff.differentiation import (
    NotTwiceDifferentiable,
    gradients,
    many_gradients,
    without_hooks,
)
from natgrad.autodiff.graph import Graph
from natgrad.autodiff.hooks import ROUNDING, not_linear
from natgrad.flat import Slots, as_piece, as_real

ROWS = 64  # rows or columns of J in one vectorised backward pass


class Jacobian:
    """J = ∂outputs/∂parameters (m, n), with products :meth:`forward` J v and :meth:`transpose` Jᵀu.

    Frozen and unused parameters have zero columns, outputs without a graph zero rows. Hooks of
    parameters and modules are not run.

    Parameters
    ----------
    outputs
        Tensors of any shapes with their graphs, m elements together.
    slots
        The parameters and their places in a vector (n,).

    Attributes
    ----------
    reached
        The parameters that some output depends on.

    Raises
    ------
    NotTwiceDifferentiable
        If the graph ends in a reentrant checkpoint.
    """

    def __init__(self, outputs: Sequence[Tensor], slots: Slots) -> None:
        self._outputs = tuple(outputs)
        self._slots = slots
        self._with_graph = [output for output in self._outputs if output.requires_grad]
        self._graph = Graph(self._with_graph)
        self.reached = [p for p in slots.trained if self._graph.reaches(p)]
        # The record of z ↦ Jᵀz: z, the parameters that Jᵀz is not constant in, Jᵀz by parameter.
        self._z: list[Tensor] = []
        self._recorded: list[Tensor] = []
        self._transposed: list[Tensor] | None = None
        self._checked_linear = False

    @property
    def reaches(self) -> bool:
        """True if any output depends on any of the parameters."""
        return bool(self.reached)

    def unhooked(self) -> AbstractContextManager[None]:
        """Run backward passes through this graph without hooks of parameters and modules."""
        return without_hooks(self._graph.hooks, self.reached)

    def record(self) -> None:
        """Record z ↦ Jᵀz with its own graph, as products with J need it.

        :meth:`forward` calls it if needed. Raises :class:`NotTwiceDifferentiable` if Jᵀz is not
        a differentiable linear map of z. Cost: one backward pass, and for the first graph of a
        model's structure some more as a check.
        """
        if self._transposed is not None or not self.reaches:
            return
        self.require_transpose()
        try:
            self._record()
            if self._graph.custom:
                self._graph.try_once(self.reached[0], self._check_adjoint)
        except NotTwiceDifferentiable:  # a later product must not use the incomplete record
            self._transposed, self._recorded = None, []
            raise

    def require_transpose(self) -> None:
        """Raise :class:`NotTwiceDifferentiable` unless the backward pass is a linear map.

        Hooks on activations and custom Functions may break that. Cost: for the first graph of a
        model's structure four backward passes in which Python sees each operation.
        """
        if self.reaches and not self._checked_linear:
            self._graph.try_once(self.reached[0], self._check_linear)
            self._checked_linear = True

    def verify(self) -> None:
        """Make the checks of :meth:`record`, even if the structure was tried before."""
        if self.reaches:
            self._check_linear()
            self._record()
            if self._graph.custom:
                self._check_adjoint()

    def _check_linear(self) -> None:
        weights = self._cotangents()
        with self.unhooked():
            self._graph.require_linear(self._with_graph, self.reached, weights)

    def _record(self) -> None:
        self._z = [weight.requires_grad_() for weight in self._cotangents()]
        with torch.enable_grad(), self.unhooked():
            pieces = gradients(self._with_graph, self.reached, self._z, create_graph=True)
        self._transposed = []
        for parameter, piece in zip(self.reached, pieces, strict=True):
            if piece is None:
                continue
            if piece.requires_grad:
                self._recorded.append(parameter)
                self._transposed.append(piece)
            elif bool(piece.any()):  # torch's own operations return only zeros without a graph
                raise not_linear(self._graph.custom)
        self._graph.require_recorded(self._transposed)

    def _cotangents(self) -> list[Tensor]:
        # Jᵀz is linear in z, but some backward formulas of torch are not written that way
        # (logcumsumexp's takes a logarithm of z): use a z without zeros or structure.
        generator = torch.Generator(self._with_graph[0].device).manual_seed(0)
        return [
            torch.empty_like(output, requires_grad=False).uniform_(0.5, 1.5, generator=generator)
            for output in self._with_graph
        ]

    def forward(self, vector: Tensor) -> tuple[Tensor, ...]:
        """Compute J v for v (n,): one tensor for each output, of its shape."""
        self.record()
        if not self._recorded:
            return tuple(torch.zeros_like(output) for output in self._outputs)
        assert self._transposed is not None
        pieces = self._slots.pieces(vector, self._recorded)
        with self.unhooked():
            tangents = iter(gradients(self._transposed, self._z, pieces))
        return tuple(
            torch.zeros_like(output) if tangent is None else tangent
            for output in self._outputs
            for tangent in [next(tangents) if output.requires_grad else None]
        )

    def transpose(self, cotangents: Sequence[Tensor]) -> Tensor:
        """Compute Jᵀu (n,); ``cotangents`` u are one tensor for each output, of its shape."""
        if not self.reaches:
            return self._slots.vector((), ())
        self.require_transpose()
        along = [
            cotangent
            for output, cotangent in zip(self._outputs, cotangents, strict=True)
            if output.requires_grad
        ]
        with self.unhooked():
            found = gradients(self._with_graph, self.reached, along)
            return self._slots.vector(self.reached, found)

    def _check_adjoint(self) -> None:
        """Raise unless ⟨J v, u⟩ = ⟨v, Jᵀu⟩ for random v and u.

        If a custom Function's backward pass loses a part of its graph, the recorded one is not J.
        """
        like = self.reached[0]
        generator = torch.Generator(like.device).manual_seed(1)
        for _ in range(3):  # a single direction may miss an error that depends on a sign
            self._check_adjoint_along(like, generator)

    def _check_adjoint_along(self, like: Tensor, generator: torch.Generator) -> None:
        def random(shape: torch.Size, dtype: torch.dtype) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype, device=like.device)

        v = random(torch.Size([self._slots.size]), self._slots.dtype)
        images = self.forward(v)
        # u is partly along J v, where an error of J shows most, and partly random: J v may be 0.
        noise = [random(image.shape, image.dtype) for image in images]
        size, spread = _norm(images), _norm(noise)
        unit = torch.where(size > 0, size, 1.0)
        # Unequal shares, since equal ones may cancel where there is one output.
        u = [(y / unit + z / (2 * spread)).to(y) for y, z in zip(images, noise, strict=True)]
        pulled = self.transpose(u)
        difference = _inner([v], [pulled]) - _inner(images, u)
        # At an optimum both are rounding errors of 0: measure these as the change under scaling.
        rounding = _norm([self.transpose([3 * piece for piece in u]) / 3 - pulled])
        allowed = torch.finfo(self._slots.dtype).eps ** 0.5 * torch.maximum(size, _norm([pulled]))
        allowed = allowed + ROUNDING * rounding
        # Where values are not finite this comparison is False, and says nothing.
        if bool(difference.abs() > allowed):
            raise not_linear(self._graph.custom)

    def to_dense(self) -> Tensor:
        """Return J (m, n), with the outputs flattened and concatenated.

        Cost: m backward passes or n products with J, whichever are fewer, ``ROWS`` at a time. If
        the graph has no products with J, m backward passes.
        """
        self.require_transpose()
        m, n = sum(output.numel() for output in self._outputs), self._slots.size
        if m <= n:
            return torch.cat([self.rows(output, self._slots) for output in self._outputs])
        try:
            self.record()
        except NotTwiceDifferentiable:  # rows need only a first derivative
            return torch.cat([self.rows(output, self._slots) for output in self._outputs])
        like = self._slots.parameters[0]
        columns = []
        for start in range(0, n, ROWS):
            rows = min(ROWS, n - start)
            basis = torch.zeros(rows, n, dtype=self._slots.dtype, device=like.device)
            basis[:, start:].fill_diagonal_(1)
            columns.append(self._columns(basis))
        return torch.cat(columns, dim=1)

    def _columns(self, basis: Tensor) -> Tensor:
        """Compute J Vᵀ (m, k) for the rows of V (k, n)."""
        if not self._recorded:
            m = sum(output.numel() for output in self._outputs)
            return basis.new_zeros(m, len(basis))
        along = [
            as_piece(basis[:, self._slots.span(parameter)], parameter, len(basis))
            for parameter in self._recorded
        ]
        assert self._transposed is not None
        vectorised = not self._graph.custom
        with self.unhooked():
            tangents = iter(many_gradients(self._transposed, self._z, along, vectorised=vectorised))
        found = []
        for output in self._outputs:
            tangent = next(tangents) if output.requires_grad else None
            if tangent is None:
                tangent = basis.new_zeros(len(basis), output.numel())
            found.append(tangent.reshape(len(basis), -1))
        return torch.cat(found, dim=1).mT

    def rows(self, output: Tensor, slots: Slots) -> Tensor:
        """Return the rows of J that belong to one output, (m, n), for the parameters of ``slots``.

        ``output`` is one of the outputs, of m elements, or a function of them; ``slots`` may hold
        other parameters than the Jacobian's. Cost: m backward passes, ``ROWS`` at a time.
        """
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
                    rows[start : start + len(picked), span] = as_real(piece).reshape(
                        len(picked), -1
                    )
        return rows


def _inner(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    return torch.stack(
        [(a.double() * b.double()).sum() for a, b in zip(left, right, strict=True)]
    ).sum()


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return _inner(tensors, tensors).sqrt()
