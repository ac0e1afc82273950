"""The exact Hessian of a loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from natgrad.autodiff.differentiation import gradients, without_hooks
from natgrad.autodiff.function_module import Parameters
from natgrad.autodiff.graph import Graph
from natgrad.autodiff.hooks import ROUNDING, not_linear
from natgrad.autodiff.jacobian import Jacobian
from natgrad.curvature.batched import BatchedOperator
from natgrad.flat import Slots


class Hessian(BatchedOperator):
    """H = ∇²_θ loss, the exact Hessian of a loss.

    H is symmetric and in general indefinite: solve with ``steihaug``, ``lanczos`` or ``minres``.

    Parameters
    ----------
    source
        A scalar loss with its graph, or a forward function of ``data`` that returns the *mean* loss
        of its samples. Chunks are averaged by their length.
    parameters
        The parameters to differentiate in, n elements, in the order of the vectors. Frozen and
        unused ones have zero rows. Do not change them while H is in use: products raise then.
        A mapping's are its values, and a forward function is then called as torch.func has it:
        ``source(parameters, data)``.
    data
        The argument of a forward function, N samples: a tensor, or mappings, lists and tuples of
        tensors, cut along dimension 0. Required with a function, refused without one.
    chunk_size
        The number of samples in one forward pass. Set it if the graph of all of them does not fit
        in memory: every product then runs the function anew for each chunk.
    fraction
        The fraction of the samples to use, in (0, 1], drawn once. Lower it to make products cheaper
        and noisier.
    generator
        Draws these samples; required if ``fraction`` is below 1.

    Raises
    ------
    ValueError
        If the loss is not a scalar, depends on none of the parameters, or arguments do not fit
        together.
    NotTwiceDifferentiable
        As for :class:`Fisher`.

    Notes
    -----
    The guarantees for a forward function are those of :class:`Fisher`.
    Cost: set-up one backward pass, a product about 2 gradients (a backward pass through the
    recorded gradient); memory of the gradient's graph.
    Source: Pearlmutter, "Fast exact multiplication by the Hessian", 1994.

    Examples
    --------
    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> Hessian((x ** 3).sum(), [x]).to_dense()
    tensor([[ 6.,  0.],
            [ 0., 12.]])
    """

    def __init__(
        self,
        source: Tensor | Callable[..., Tensor],
        parameters: Parameters,
        *,
        data: Any = None,
        chunk_size: int | None = None,
        fraction: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            source,
            parameters,
            data=data,
            chunk_size=chunk_size,
            weights=None,
            fraction=fraction,
            generator=generator,
        )

    def _record(self, outcome: Tensor, weights: Tensor | None, samples: int | None) -> _LossBatch:
        return _LossBatch(outcome, self._slots, 1.0 if samples is None else float(samples))


class _LossBatch:
    """``samples`` times ∇²loss, from the graph of the gradient."""

    def __init__(self, loss: Tensor, slots: Slots, samples: float) -> None:
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"expected a scalar loss, got {got}; reduce it with .mean()")
        self.samples = samples
        self._slots = slots
        self._nonlinear: list[Tensor] = []
        self._gradient: list[Tensor] = []
        self._graph = Graph([loss] if loss.requires_grad else [])
        self.reached = [p for p in slots.trained if self._graph.reaches(p)]
        if not self.reached:
            return
        with torch.enable_grad(), without_hooks(self._graph.hooks, self.reached):
            found = gradients([loss], self.reached, create_graph=True)
        for parameter, piece in zip(self.reached, found, strict=True):
            if piece is not None and piece.requires_grad:  # otherwise the loss is linear in it
                self._nonlinear.append(parameter)
                self._gradient.append(piece)
        self._graph.require_recorded(self._gradient)

        def hessian() -> None:
            # A gradient without a graph may belong to a linear loss: test the Jacobian.
            Jacobian((loss,), slots).verify()
            if self._graph.custom:
                self._require_symmetry()

        self._graph.try_once(self.reached[0], hessian)

    def product(self, vector: Tensor) -> Tensor:
        """Compute ``samples`` times H v for v (n,)."""
        if not self._nonlinear:
            return self._slots.vector((), ())
        pieces = self._slots.pieces(vector, self._nonlinear)
        with without_hooks(self._graph.hooks, self.reached):
            products = gradients(self._gradient, self.reached, pieces)
        return self.samples * self._slots.vector(self.reached, products)

    def _require_symmetry(self) -> None:
        """Raise unless ⟨u, H v⟩ = ⟨H u, v⟩ for random u and v."""
        like = self.reached[0]
        generator = torch.Generator(like.device).manual_seed(2)
        u, v = torch.randn(
            2, self._slots.size, generator=generator, dtype=self._slots.dtype, device=like.device
        )
        Hu, Hv = self.product(u).double(), self.product(v).double()
        # Sums that cancel leave rounding errors: measure these as the change under scaling.
        rounding = (self.product(3 * u).double() / 3 - Hu).norm()
        allowed = torch.finfo(self._slots.dtype).eps ** 0.5 * torch.maximum(Hu.norm(), Hv.norm())
        allowed = allowed + ROUNDING * rounding
        if bool((u.double() @ Hv - Hu @ v.double()).abs() > allowed):
            raise not_linear(self._graph.custom)
