"""What a layer's gradient is made of: its inputs, unrolled to rows, and its output gradients.

The gradient of one sample in the weight matrix (d_out, d_in) of a linear, convolutional or
embedding layer is Σ_r g_r a_rᵀ over the R positions where the sample uses the weights: time steps,
pixels, tokens. A bias adds a constant 1 to a. Dimension 0 of what a layer sees counts the samples.

A forward hook sees calls, not uses: a weight tied by hand, or an output changed by another hook,
escapes it. So :func:`verified` compares Σ g aᵀ with autograd's own gradient, once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F


@dataclass
class Call:
    """One call: the inputs, and the place in the graph of the outputs and their shape.

    The place, not the tensor: an operation in place after the layer would move the tensor on.
    """

    inputs: Tensor
    edge: GradientEdge
    shape: torch.Size


@dataclass
class Layer:
    """A supported module and what its calls saw, in their order."""

    module: nn.Module
    weight: Tensor
    bias: Tensor | None
    calls: list[Call] = field(default_factory=list)

    @property
    def owners(self) -> tuple[Tensor, ...]:
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    @property
    def is_embedding(self) -> bool:
        return isinstance(self.module, nn.Embedding)

    def rows(self) -> Tensor:
        """The inputs (N, R, d_in), with the bias's 1; for an embedding its indices (N, R).

        Calls stand side by side in R. Raises ``ValueError`` where calls differ in N.
        """
        unrolled = [self._unroll(call.inputs) for call in self.calls]
        if len({len(rows) for rows in unrolled}) != 1:
            raise ValueError(
                f"{self.module} was called for batches of {[len(rows) for rows in unrolled]} "
                "samples in one forward pass; one batch size is expected"
            )
        rows = torch.cat(unrolled, dim=1)
        if self.bias is not None:
            rows = torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], dim=2)
        return rows

    def mean_rows(self) -> Tensor:
        """The inputs (N, d_in) averaged over positions; for an embedding, shares of each word."""
        rows = self.rows()
        if isinstance(self.module, nn.Embedding):
            shares = F.one_hot(rows, self.module.num_embeddings).to(self.weight).mean(dim=1)
            if self.module.padding_idx is not None:
                shares[:, self.module.padding_idx] = 0
            return shares
        return rows.mean(dim=1)

    def gradients(self, found: Sequence[Tensor | None], *, masked: bool = True) -> Tensor:
        """Output gradients, one a call (None for zeros), as rows (N, R, d_out).

        At an embedding's padding they are zero where ``masked``; :meth:`mean_rows` has masked the
        inputs already.
        """
        pieces = []
        for call, gradient in zip(self.calls, found, strict=True):
            full = self.weight.new_zeros(call.shape) if gradient is None else gradient.detach()
            if isinstance(self.module, (nn.Conv1d, nn.Conv2d)):
                full = full.flatten(2).mT
            pieces.append(full.reshape(len(full), -1, full.shape[-1]))
        rows = torch.cat(pieces, dim=1)
        if masked and isinstance(self.module, nn.Embedding) and self.module.padding_idx is not None:
            rows = rows * (self.rows() != self.module.padding_idx).unsqueeze(2)
        return rows

    def summed(self, gradients: Sequence[Tensor | None]) -> list[Tensor]:
        """Σ_n Σ_r g aᵀ as pieces shaped like the owners: the gradient of the whole batch."""
        g, rows = self.gradients(gradients).flatten(0, 1), self.rows().flatten(0, 1)
        if isinstance(self.module, nn.Embedding):
            total = g.new_zeros(self.module.num_embeddings, g.shape[1])
            matrix = total.index_add(0, rows, g).mT
        else:
            matrix = g.mT @ rows
        return [piece.squeeze(-1) for piece in self.pieces(matrix.unsqueeze(0))]

    def rounding(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """How far off rounding may leave an entry of :meth:`summed`, a 0-d tensor: some eps times
        ‖g‖ ‖a‖, of the rows of g and a that are multiplied and added up."""
        g, rows = self.gradients(gradients).flatten(0, 1), self.rows().flatten(0, 1)
        inputs = rows.new_ones(()) * len(rows) ** 0.5  # of an embedding, whose a are 0 and 1
        if not self.is_embedding:
            inputs = torch.linalg.vector_norm(rows, dim=0).amax()
        size: Tensor = torch.linalg.vector_norm(g, dim=0).amax() * inputs
        return 10 * torch.finfo(g.dtype).eps * size

    def matrix(self, pieces: Sequence[Tensor]) -> Tensor:
        """Pieces shaped like the owners, with a trailing k, as matrices (k, d_out, d_in)."""
        weight = pieces[0].flatten(1, -2) if pieces[0].ndim > 2 else pieces[0]
        matrix = weight.movedim(-1, 0)
        if self.is_embedding:
            return matrix.mT
        if self.bias is not None:
            matrix = torch.cat([matrix, pieces[1].mT.unsqueeze(2)], dim=2)
        return matrix

    def pieces(self, matrix: Tensor) -> list[Tensor]:
        """The inverse of :meth:`matrix`."""
        if self.is_embedding:
            matrix = matrix.mT
        weight = matrix if self.bias is None else matrix[:, :, :-1]
        found = [weight.movedim(0, -1).reshape(*self.weight.shape, len(matrix))]
        if self.bias is not None:
            found.append(matrix[:, :, -1].mT)
        return found

    def _unroll(self, inputs: Tensor) -> Tensor:
        module = self.module
        if isinstance(module, nn.Embedding):
            return inputs.reshape(len(inputs), -1)
        if isinstance(module, nn.Conv1d):
            inputs = F.pad(inputs, _padding(module), mode=_mode(module)).unsqueeze(2)
            geometry: dict[str, Any] = {
                "kernel_size": (1, *module.kernel_size),
                "dilation": (1, *module.dilation),
                "stride": (1, *module.stride),
            }
            return F.unfold(inputs, **geometry).mT
        if isinstance(module, nn.Conv2d):
            inputs = F.pad(inputs, _padding(module), mode=_mode(module))
            return F.unfold(
                inputs, module.kernel_size, dilation=module.dilation, stride=module.stride
            ).mT
        return inputs.reshape(len(inputs), -1, inputs.shape[-1])


def supported(module: nn.Module) -> bool:
    """Whether the gradient in this module's parameters is Σ g aᵀ as :class:`Layer` unrolls it."""
    if type(module) in (nn.Conv1d, nn.Conv2d):
        return bool(module.groups == 1)
    if type(module) is nn.Embedding:
        return module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
    return type(module) in (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)


def candidates(model: nn.Module, wanted: Sequence[Tensor]) -> list[Layer]:
    """A :class:`Layer` for every supported module of the model whose weight is wanted and its own
    alone: not another module's, not computed by a parametrisation."""
    users: dict[Tensor, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users[parameter] = users.get(parameter, 0) + 1
    asked = set(wanted)
    layers = []
    for module in model.modules():
        named = dict(module.named_parameters(recurse=False))
        own = all(users[parameter] == 1 for parameter in named.values())
        if not supported(module) or not own or not {"weight"} <= set(named) <= {"weight", "bias"}:
            continue
        weight, bias = named["weight"], named.get("bias")
        if weight in asked:
            layers.append(Layer(module, weight, bias if bias in asked else None))
    return layers


@contextmanager
def recorded_layers(model: nn.Module, wanted: Sequence[Tensor]) -> Iterator[list[Layer]]:
    """Inside, forward passes fill the :func:`candidates`. For the forward pass alone: modules in a
    checkpoint run again in a backward pass, and those calls have no part in the graph."""
    layers = candidates(model, wanted)
    handles = []
    for layer in layers:

        def record(
            _: nn.Module, inputs: Any, named: Any, output: Tensor, layer: Layer = layer
        ) -> None:
            if output.requires_grad:  # else no gradient comes through this call
                given = inputs[0] if inputs else named["input"]
                layer.calls.append(Call(given.detach(), get_gradient_edge(output), output.shape))

        handles.append(layer.module.register_forward_hook(record, with_kwargs=True))
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()


def output_gradients(scalar: Tensor, layers: Sequence[Layer]) -> list[list[Tensor | None]]:
    """∂scalar/∂(outputs of each call of each layer); the graph is kept."""
    edges = [call.edge for layer in layers for call in layer.calls]
    found = iter(torch.autograd.grad(scalar, edges, retain_graph=True, allow_unused=True))
    return [[next(found) for _ in layer.calls] for layer in layers]


def verified(layers: Sequence[Layer], scalar: Tensor, samples: int) -> list[Layer]:
    """The layers of which Σ g aᵀ over their calls *is* the gradient of ``scalar``, and that saw at
    least ``samples`` rows. Cost: one backward pass to the layers, and one to their weights."""
    called = [layer for layer in layers if layer.calls]
    owners = [owner for layer in called for owner in layer.owners]
    if not called:
        return []
    autograds = iter(torch.autograd.grad(scalar, owners, retain_graph=True, allow_unused=True))
    kept = []
    for layer, found in zip(called, output_gradients(scalar, called), strict=True):
        truth = [next(autograds) for _ in layer.owners]
        try:
            summed = layer.summed(found)
        except (RuntimeError, ValueError):  # calls of different batches, inputs without a batch
            continue
        if len(layer.rows()) >= samples and _close(summed, truth, layer.rounding(found)):
            kept.append(layer)
    return kept


def _close(mine: Sequence[Tensor], truth: Sequence[Tensor | None], rounding: Tensor) -> bool:
    """Whether a layer's gradients agree, by the size of all of them and by what rounding explains:
    one that is 0 by symmetry (a bias before a norm, of keys under a softmax) is two roundings."""
    true = [torch.zeros_like(a) if b is None else b for a, b in zip(mine, truth, strict=True)]
    scale = torch.stack([piece.abs().amax() for piece in (*mine, *true)]).amax()
    tolerance = torch.finfo(mine[0].dtype).eps ** 0.5 * scale + rounding
    # Gradients that are not finite are not this comparison's to judge.
    return not any(bool(((a - b).abs() > tolerance).any()) for a, b in zip(mine, true, strict=True))


def _padding(module: nn.Conv1d | nn.Conv2d) -> list[int]:
    """Left and right for every dimension, the last first, as F.pad wants it."""
    both: list[int] = []
    for axis in reversed(range(len(module.kernel_size))):
        if module.padding == "same":
            total = module.dilation[axis] * (module.kernel_size[axis] - 1)
            both += [total // 2, total - total // 2]
        elif module.padding == "valid":
            both += [0, 0]
        else:
            both += [int(module.padding[axis])] * 2
    return both


def _mode(module: nn.Conv1d | nn.Conv2d) -> str:
    return "constant" if module.padding_mode == "zeros" else module.padding_mode
