"""The Gram matrix of a Jacobian: curvature in the space of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from natgrad.curvature.jacobian import Jacobian
from natgrad.curvature.layers import Layer, recorded_layers
from natgrad.curvature.operator import LinearOperator
from natgrad.curvature.slots import Slots
from natgrad.curvature.traceless import RandomState, preserved_buffers

ROWS = 64  # of J at a time, for parameters outside layers


class Gram(LinearOperator):
    """K = J Jᵀ (m, m), J (m, n) the Jacobian of m outputs in n parameters; m is often far below n.

    ``Gram(outputs, parameters)`` takes outputs of any shape, residuals say, with their graph. For a
    Fisher matrix F = J̃ᵀJ̃ / N give ``metrics.root_outputs(distribution)``. Where the outputs are
    (N,) or (N, C), row i a function of sample i alone, ``Gram(forward, parameters, data=x,
    model=model)`` forms the matrix layer by layer, Σ over layers of (a aᵀ) ∘ (g gᵀ), from C
    backward passes; without a model, from m.

    ``K @ u`` costs one product pair of J. ``to_dense()`` takes C or m backward passes and m² (per
    layer, d_in + d_out) operations, once: the matrix is kept. ``transpose(u)`` is Jᵀ u (n,), the
    way back to the parameters; :func:`natgrad.solvers.sample_space` uses both.

    Raises ``ValueError`` where the outputs depend on none of the parameters.

    Source: Novak, Sohl-Dickstein & Schoenholz, "Fast finite width neural tangent kernel", 2022.

    >>> weight = torch.ones(3, requires_grad=True)
    >>> x = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 1.0]])
    >>> Gram(x @ weight, [weight]).to_dense()
    tensor([[5., 2.],
            [2., 2.]])
    """

    def __init__(
        self,
        source: Tensor | Callable[[Any], Tensor],
        parameters: Iterable[Tensor],
        *,
        data: Any = None,
        model: nn.Module | None = None,
    ) -> None:
        slots = Slots(parameters)
        self._layers: list[Layer] = []
        if isinstance(source, Tensor):
            if data is not None or model is not None:
                raise ValueError(
                    "data and model need a forward function: Gram(forward, parameters, data=x, "
                    "model=model); outputs are already evaluated"
                )
            outputs = source
        else:
            if data is None:
                raise ValueError("a forward function needs data=x, the inputs to call it with")
            with (
                recorded_layers(model or nn.Module(), slots.trained) as layers,
                RandomState(slots.parameters[0].device).replayed(),
                torch.inference_mode(False),
                torch.enable_grad(),
                preserved_buffers(),
            ):
                outputs = source(data)
            self._layers = [layer for layer in layers if layer.inputs]
        if self._layers and outputs.ndim not in (1, 2):
            raise ValueError(
                f"outputs must be (N,) or (N, C) where a model is given, got {tuple(outputs.shape)}"
            )
        super().__init__(outputs.numel(), outputs.dtype, outputs.device)
        self._outputs, self._slots = outputs, slots
        self._jacobian = Jacobian((outputs,), slots)
        if not self._jacobian.reaches:
            raise ValueError(
                f"the outputs depend on none of the {len(slots.trained)} parameters with "
                "requires_grad=True; compute them with gradients enabled, from these, not copies"
            )
        self._dense: Tensor | None = None

    def transpose(self, u: Tensor) -> Tensor:
        """Jᵀ u (n,) for u (m,)."""
        column = self._as_matrix(u).reshape(self._outputs.shape)
        return self._jacobian.transpose((column,))

    def _multiply(self, matrix: Tensor) -> Tensor:
        if self._dense is not None:
            return self._dense @ matrix
        columns = [
            self._jacobian.forward(
                self._jacobian.transpose((matrix[:, column].reshape(self._outputs.shape),))
            )[0].reshape(-1)
            for column in range(matrix.shape[1])
        ]
        return torch.stack(columns, dim=1)

    def to_dense(self) -> Tensor:
        """K (m, m), formed once."""
        if self._dense is None:
            covered = {id(owner) for layer in self._layers for owner in layer.owners}
            rest = [p for p in self._slots.trained if id(p) not in covered]
            dense = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
            if self._layers:
                dense += self._of_layers()
            if rest:
                rows = self._rows(rest)
                dense += rows @ rows.mT
            self._dense = dense
        return self._dense.clone()

    def _of_layers(self) -> Tensor:
        samples = len(self._outputs)
        outputs = self._outputs.reshape(samples, -1)
        width = outputs.shape[1]
        calls = [output for layer in self._layers for output in layer.outputs]
        gradients: list[list[Tensor]] = []
        with torch.enable_grad():
            for column in range(width):
                found = iter(
                    torch.autograd.grad(
                        outputs[:, column].sum(), calls, retain_graph=True, allow_unused=True
                    )
                )
                gradients.append(
                    [
                        layer.gradients([next(found) for _ in layer.outputs])
                        for layer in self._layers
                    ]
                )
        total = outputs.new_zeros(samples, width, samples, width)
        for index, layer in enumerate(self._layers):
            g = torch.stack([column[index] for column in gradients], dim=1)  # (N, C, R, d_out)
            total += _layer_gram(layer, g.detach())
        return total.reshape(self.shape)

    def _rows(self, parameters: list[Tensor]) -> Tensor:
        """The columns of J that belong to these parameters, (m, p)."""
        flat = self._outputs.reshape(-1)
        blocks = []
        for start in range(0, len(flat), ROWS):
            picked = torch.zeros(min(ROWS, len(flat) - start), len(flat), dtype=self.dtype)
            picked[:, start:].fill_diagonal_(1)
            found = torch.autograd.grad(
                flat, parameters, picked.to(flat), retain_graph=True, allow_unused=True,
                is_grads_batched=True, materialize_grads=True,
            )  # fmt: skip
            blocks.append(torch.cat([piece.reshape(len(picked), -1) for piece in found], dim=1))
        return torch.cat(blocks)


def _layer_gram(layer: Layer, g: Tensor) -> Tensor:
    """(N, C, N, C): inner products of per-sample gradients in one layer's weight and bias."""
    rows = layer.rows()
    if g.shape[2] == 1 and not layer.is_embedding:
        # Rank one: ⟨g aᵀ, g′ a′ᵀ⟩ = (a·a′)(g·g′), and no per-sample gradient is formed.
        a, g = rows[:, 0], g[:, :, 0]
        return torch.einsum("nm,ncmd->ncmd", a @ a.mT, torch.einsum("nco,mdo->ncmd", g, g))
    if layer.is_embedding:
        # Summed per word: the gradient of sample n in row v is Σ_r 1[id = v] g.
        same = (rows[:, :, None, None] == rows).to(g)  # (N, R, N, R)
        return torch.einsum("nrms,ncro,mdso->ncmd", same, g, g)
    per_sample = torch.einsum("ncro,nri->ncoi", g, rows)
    return torch.einsum("ncoi,mdoi->ncmd", per_sample, per_sample)
