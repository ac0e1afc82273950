"""The Gram matrix J Jᵀ of a Jacobian: curvature in the space of samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from natgrad.autodiff.function_module import Parameters, resolved
from natgrad.autodiff.jacobian import Jacobian
from natgrad.autodiff.layers import Layer, output_gradients, recorded_layers, verified
from natgrad.autodiff.side_effects import Forward, preserved_buffers
from natgrad.curvature.batched import not_copyable, with_fallback_kernels
from natgrad.curvature.operator import LinearOperator
from natgrad.flat import Slots


class Gram(LinearOperator):
    """K = J Jᵀ (m, m), J (m, n) the Jacobian of m outputs in n parameters; m is often far below n.

    :meth:`transpose` maps back to the parameters; :func:`natgrad.solvers.sample_space` solves in
    the space of samples with both.

    Parameters
    ----------
    source
        The outputs with their graph, a tensor of any shape with m elements, such as residuals, or a
        forward function of ``data`` that returns them. For a Fisher matrix F = J̃ᵀJ̃ / N give
        ``metrics.root_outputs(distribution)``.
    parameters
        The parameters to differentiate in, n elements. Frozen and unused ones have zero columns in
        J. Do not change them while K is in use: products raise then.
        A mapping's are its values, and a forward function is then called as torch.func has it:
        ``source(parameters, data)``.
    data
        The argument of a forward function. Required with a function, refused without one.
    model
        The module that the forward function calls. Give it if the outputs are (N,) or (N, C) and
        row i depends on sample i alone: :meth:`to_dense` then takes C backward passes, not m.

    Raises
    ------
    ValueError
        If the outputs are empty, depend on none of the parameters, or arguments do not fit
        together.
    NotTwiceDifferentiable
        As for :class:`Fisher`.

    Notes
    -----
    The guarantees for a forward function are those of :class:`Fisher`.

    Cost: ``K @ u`` one product pair of J. ``to_dense()`` m backward passes, once: the matrix is
    kept. With a model it sums (a aᵀ) ∘ (g gᵀ) over layers, from C backward passes: a layer that is
    used at one position a sample costs m² (d_in + d_out) operations; one that is used at several,
    N C d_in d_out memory for its per-sample gradients. Layers for which that does not hold (words
    repeated in an embedding, weights tied by hand, dimension 0 not the batch) fall back to the m
    backward passes.

    Source: Novak, Sohl-Dickstein & Schoenholz, "Fast finite width neural tangent kernel", 2022.

    Examples
    --------
    >>> weight = torch.ones(3, requires_grad=True)
    >>> x = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 1.0]])
    >>> Gram(x @ weight, [weight]).to_dense()
    tensor([[5., 2.],
            [2., 2.]])
    """

    def __init__(
        self,
        source: Tensor | Callable[..., Tensor],
        parameters: Parameters,
        *,
        data: Any = None,
        model: nn.Module | None = None,
    ) -> None:
        source, parameters = resolved(source, parameters)
        self._slots = Slots(parameters)
        self._model, self._data = model, data
        self._forward: Forward | None = None
        self._layers: list[Layer] = []
        if isinstance(source, Tensor):
            if data is not None or model is not None:
                raise ValueError(
                    "data and model need a forward function: Gram(forward, parameters, data=x, "
                    "model=model); outputs are already evaluated"
                )
            with torch.inference_mode(False), preserved_buffers():
                self._record(source)
        else:
            if data is None:
                raise ValueError("a forward function needs data=x, the inputs to call it with")
            self._forward = Forward(source, self._slots.parameters[0].device)
            self._run_forward()
        super().__init__(self._outputs.numel(), self._outputs.dtype, self._outputs.device)
        self._dense: Tensor | None = None

    def _run_forward(self) -> None:
        """Run the forward pass, and record its Jacobian and the layers that it went through."""
        assert self._forward is not None
        with self._forward.replayed(), preserved_buffers():
            with recorded_layers(
                nn.Module() if self._model is None else self._model, self._slots.trained
            ) as layers:
                outputs = self._forward(self._data)
            self._record(outputs)
            if self._model is None:
                return
            if outputs.ndim not in (1, 2):
                raise ValueError(
                    "outputs must be (N,) or (N, C) where a model is given, got "
                    f"{tuple(outputs.shape)}"
                )
            with torch.enable_grad():
                # Unequal weights, so that errors of a layer's gradient cannot cancel.
                weights = torch.linspace(0.5, 1.5, outputs.numel()).to(outputs)
                scalar = outputs.reshape(-1) @ weights
            with self._jacobian.unhooked():
                called = verified(layers, scalar, len(outputs))
            self._layers = [
                layer
                for layer in called
                if len(layer.rows()) == len(outputs)
                and not (layer.is_embedding and layer.rows().shape[1] > 1)
            ]

    def _record(self, outputs: Tensor) -> None:
        if not isinstance(outputs, Tensor) or not outputs.numel():
            got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise ValueError(
                f"expected outputs as a tensor with at least one element, got {got}; for a "
                "distribution use metrics.root_outputs(distribution)"
            )
        self._outputs = outputs
        self._jacobian = Jacobian((outputs,), self._slots)
        self._jacobian.require_transpose()
        if not self._jacobian.reaches:
            raise self._slots.unreached()

    def __getstate__(self) -> dict[str, Any]:
        raise not_copyable(self)

    def transpose(self, u: Tensor) -> Tensor:
        """Compute Jᵀu (n,).

        Parameters
        ----------
        u
            A vector (m,), in the order of the flattened outputs.

        Raises
        ------
        ValueError
            If u is not a vector (m,) of the operator's dtype and device.
        """
        if u.ndim != 1:
            raise ValueError(f"expected u of shape ({self.shape[0]},), got {tuple(u.shape)}")
        column = self._as_matrix(u).reshape(self._outputs.shape)
        self._slots.check_unchanged()
        return self._jacobian.transpose((column,))

    def _multiply(self, matrix: Tensor) -> Tensor:
        if self._dense is not None:
            return self._dense @ matrix
        self._slots.check_unchanged()
        with torch.inference_mode(False), preserved_buffers():
            return with_fallback_kernels(
                lambda: self._product(matrix), self._forward, self._run_forward
            )

    def _product(self, matrix: Tensor) -> Tensor:
        columns = []
        for column in matrix.mT:
            pulled = self._jacobian.transpose((column.reshape(self._outputs.shape),))
            columns.append(self._jacobian.forward(pulled)[0].reshape(-1))
        return torch.stack(columns, dim=1)

    def to_dense(self) -> Tensor:
        """Return K (m, m), which is computed once and kept."""
        if self._dense is None:
            self._slots.check_unchanged()
            covered = {owner for layer in self._layers for owner in layer.owners}
            rest = [p for p in self._slots.trained if p not in covered]
            dense = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
            unhooked = self._jacobian.unhooked()
            with torch.inference_mode(False), preserved_buffers(), unhooked:
                if self._layers:
                    dense += self._gram_of_layers()
                if rest:
                    rows = self._jacobian.rows(self._outputs, Slots(rest))
                    dense += rows @ rows.mT
            self._dense = dense
        return self._dense.clone()

    def _gram_of_layers(self) -> Tensor:
        """Sum the contributions of the verified layers to K (m, m), from C backward passes."""
        samples = len(self._outputs)
        with torch.enable_grad():
            columns = self._outputs.reshape(samples, -1).unbind(dim=1)
            sums = [column.sum() for column in columns]
        found = [output_gradients(total, self._layers) for total in sums]
        dense = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
        dense = dense.view(samples, len(sums), samples, len(sums))
        for index, layer in enumerate(self._layers):
            g = torch.stack([layer.gradients(column[index]) for column in found], dim=1)
            dense += _layer_gram(layer, g)
        return dense.view(self.shape)


def _layer_gram(layer: Layer, g: Tensor) -> Tensor:
    """Compute the inner products (N, C, N, C) of a layer's per-sample gradients Σ_r g aᵀ.

    ``g`` (N, C, R, d_out) are its output gradients.
    """
    rows = layer.rows()
    if g.shape[2] > 1:
        per_sample = torch.einsum("ncro,nri->ncoi", g, rows)
        return torch.einsum("ncoi,mdoi->ncmd", per_sample, per_sample)
    # Gradients of rank one need not be formed: ⟨g aᵀ, g′ a′ᵀ⟩ = (a·a′)(g·g′).
    a, g = rows[:, 0], g[:, :, 0]
    inputs = (a.unsqueeze(1) == a).to(g) if layer.is_embedding else a @ a.mT
    return torch.einsum("nm,ncmd->ncmd", inputs, torch.einsum("nco,mdo->ncmd", g, g))
