"""The factors of a layer's gradient: its inputs, unrolled to rows, and its output gradients.

The gradient of one sample in the weight matrix (d_out, d_in) of a linear, convolutional or
embedding layer is Σ_r g_r a_rᵀ over the R positions where the sample uses the weights: time steps,
pixels, tokens. A bias appends a constant 1 to a. Dimension 0 of a layer's input counts the samples.

The factors are recorded by forward hooks, which see calls of a module: they miss a weight tied by
hand, or an output that another hook changed. So :func:`verified` compares Σ g aᵀ with autograd's
own gradient once.
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

from natgrad.autodiff.unrolling import supported, unroll


@dataclass
class Call:
    """One call of a layer.

    Attributes
    ----------
    inputs
        The input tensor, detached.
    edge
        The place of the output in the graph. The output tensor itself would move on to another
        node if an operation changed it in place.
    shape
        The shape of the output.
    """

    inputs: Tensor
    edge: GradientEdge
    shape: torch.Size


@dataclass
class Layer:
    """A supported module and its calls in a forward pass.

    Attributes
    ----------
    module
        A Linear, Conv1d, Conv2d or Embedding module.
    weight, bias
        Its parameters; ``bias`` is None if it has none, or if it is not wanted.
    calls
        Its calls, in order.
    """

    module: nn.Module
    weight: Tensor
    bias: Tensor | None
    calls: list[Call] = field(default_factory=list)

    @property
    def owners(self) -> tuple[Tensor, ...]:
        """The parameters whose gradients this layer gives: the weight, and the bias if wanted."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    @property
    def is_embedding(self) -> bool:
        """True if the inputs are indices of words, which stand for unit vectors."""
        return isinstance(self.module, nn.Embedding)

    def rows(self) -> Tensor:
        """Return the inputs (N, R, d_in), with the bias's 1; for an embedding its indices (N, R).

        Several calls are concatenated along R. Raises ``ValueError`` if calls differ in N.
        """
        unrolled = [unroll(self.module, call.inputs) for call in self.calls]
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
        """Return the inputs (N, d_in) averaged over positions.

        For an embedding these are the shares of each word, 0 for its padding.
        """
        rows = self.rows()
        if isinstance(self.module, nn.Embedding):
            shares = F.one_hot(rows, self.module.num_embeddings).to(self.weight).mean(dim=1)
            if self.module.padding_idx is not None:
                shares[:, self.module.padding_idx] = 0
            return shares
        return rows.mean(dim=1)

    def gradients(self, found: Sequence[Tensor | None], *, masked: bool = True) -> Tensor:
        """Arrange output gradients as rows (N, R, d_out).

        Parameters
        ----------
        found
            One gradient for each call, None for zeros, as from :func:`output_gradients`.
        masked
            Whether to zero them at an embedding's padding. Not needed with :meth:`mean_rows`, which
            masks the inputs.
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
        """Compute Σ_n Σ_r g aᵀ, the gradient of the batch, as pieces shaped like the owners."""
        g, rows = self.gradients(gradients).flatten(0, 1), self.rows().flatten(0, 1)
        if isinstance(self.module, nn.Embedding):
            total = g.new_zeros(self.module.num_embeddings, g.shape[1])
            matrix = total.index_add(0, rows, g).mT
        else:
            matrix = g.mT @ rows
        return [piece.squeeze(-1) for piece in self.pieces(matrix.unsqueeze(0))]

    def rounding(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """Bound the rounding error of an entry of :meth:`summed`, a 0-d tensor.

        It is some eps times ‖g‖ ‖a‖, the norms of the columns that are multiplied and added up.
        """
        g, rows = self.gradients(gradients).flatten(0, 1), self.rows().flatten(0, 1)
        inputs = rows.new_ones(()) * len(rows) ** 0.5  # an embedding's a hold only 0 and 1
        if not self.is_embedding:
            inputs = torch.linalg.vector_norm(rows, dim=0).amax()
        size: Tensor = torch.linalg.vector_norm(g, dim=0).amax() * inputs
        return 10 * torch.finfo(g.dtype).eps * size

    def matrix(self, pieces: Sequence[Tensor]) -> Tensor:
        """Arrange pieces (shaped like the owners, then k) as matrices (k, d_out, d_in)."""
        weight = pieces[0].flatten(1, -2) if pieces[0].ndim > 2 else pieces[0]
        matrix = weight.movedim(-1, 0)
        if self.is_embedding:
            return matrix.mT
        if self.bias is not None:
            matrix = torch.cat([matrix, pieces[1].mT.unsqueeze(2)], dim=2)
        return matrix

    def pieces(self, matrix: Tensor) -> list[Tensor]:
        """Split matrices (k, d_out, d_in) into pieces: the inverse of :meth:`matrix`."""
        if self.is_embedding:
            matrix = matrix.mT
        weight = matrix if self.bias is None else matrix[:, :, :-1]
        found = [weight.movedim(0, -1).reshape(*self.weight.shape, len(matrix))]
        if self.bias is not None:
            found.append(matrix[:, :, -1].mT)
        return found


def candidates(model: nn.Module, wanted: Sequence[Tensor]) -> list[Layer]:
    """Make a :class:`Layer` for every supported module whose weight is among ``wanted``.

    Modules that share a parameter with another module, or whose weight a parametrisation computes,
    are left out.
    """
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
    """Record the calls of the :func:`candidates` in forward passes inside the context.

    Run no backward pass inside it: modules in a checkpoint run again there, and those calls do not
    belong to the graph.
    """
    layers = candidates(model, wanted)
    handles = []
    for layer in layers:

        def record(
            _: nn.Module, inputs: Any, named: Any, output: Tensor, layer: Layer = layer
        ) -> None:
            if output.requires_grad:  # otherwise no gradient flows through this call
                given = inputs[0] if inputs else named["input"]
                layer.calls.append(Call(given.detach(), get_gradient_edge(output), output.shape))

        handles.append(layer.module.register_forward_hook(record, with_kwargs=True))
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()


def output_gradients(scalar: Tensor, layers: Sequence[Layer]) -> list[list[Tensor | None]]:
    """Compute ∂scalar/∂(output of each call), as one list for each layer; the graph is kept."""
    edges = [call.edge for layer in layers for call in layer.calls]
    found = iter(torch.autograd.grad(scalar, edges, retain_graph=True, allow_unused=True))
    return [[next(found) for _ in layer.calls] for layer in layers]


def verified(layers: Sequence[Layer], scalar: Tensor, samples: int) -> list[Layer]:
    """Select the layers for which Σ g aᵀ over their calls *is* the gradient of ``scalar``.

    Parameters
    ----------
    layers
        The layers of :func:`recorded_layers`.
    scalar
        A function of all outputs without symmetry, so that errors of layers cannot cancel.
    samples
        The least number of rows that a layer's inputs must have.

    Notes
    -----
    Cost: one backward pass to the layers' outputs, and one to their weights.
    """
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
        if len(layer.rows()) >= samples and _agree(summed, truth, layer.rounding(found)):
            kept.append(layer)
    return kept


def _agree(summed: Sequence[Tensor], truth: Sequence[Tensor | None], rounding: Tensor) -> bool:
    """Compare a layer's gradients with autograd's, relative to the largest of all their entries.

    ``rounding`` is allowed too: a gradient that is 0 by symmetry (a bias before a norm, keys under
    a softmax) is two different rounding errors.
    """
    true = [torch.zeros_like(a) if b is None else b for a, b in zip(summed, truth, strict=True)]
    scale = torch.stack([piece.abs().amax() for piece in (*summed, *true)]).amax()
    tolerance = torch.finfo(summed[0].dtype).eps ** 0.5 * scale + rounding
    # A comparison with NaN is False, so that gradients that are not finite pass.
    pairs = zip(summed, true, strict=True)
    return not any(bool(((a - b).abs() > tolerance).any()) for a, b in pairs)
