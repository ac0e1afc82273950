"""The blocks of a Kronecker-factored Fisher matrix, estimated from a batch of data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from natgrad import flat
from natgrad.autodiff.differentiation import without_hooks
from natgrad.autodiff.graph import Graph
from natgrad.autodiff.layers import recorded_layers, verified
from natgrad.autodiff.side_effects import Forward, preserved_buffers
from natgrad.curvature.fisher import Fisher
from natgrad.curvature.kronecker.blocks import Block, DenseBlock, DiagonalBlock
from natgrad.curvature.kronecker.factors import Sharing, correct, layer_factors, require_samples
from natgrad.curvature.kronecker.layer_block import KroneckerBlock
from natgrad.curvature.kronecker.output_gradients import OutputGradients, checked_outputs
from natgrad.curvature.metrics import Distributions, batch_shape
from natgrad.flat import Slots

BlocksByOwners = Mapping[tuple[Tensor, ...], Block]


def estimated_blocks(
    model: nn.Module,
    data: Any,
    forward: Callable[[Any], Distributions],
    slots: Slots,
    *,
    samples: int | None,
    sharing: Sharing,
    corrected: bool,
    generator: torch.Generator | None,
    earlier: BlocksByOwners,
    decay: float,
    max_dense: int,
) -> list[Block]:
    """Estimate the diagonal blocks of the Fisher matrix from one batch.

    Parameters
    ----------
    model, data, forward, samples, sharing, corrected, generator, decay
        As in :class:`natgrad.curvature.Kronecker`.
    slots
        The parameters and their places in a vector (n,).
    earlier
        The blocks of an earlier batch, to average with; empty for none. Those whose parameters this
        batch does not reach are kept.
    max_dense
        The largest number of elements outside layers that get a dense block.
    """
    run = Forward(forward, slots.parameters[0].device)
    with run.replayed():
        with recorded_layers(model, slots.trained) as recorded:
            distribution = run(data)
        outputs = checked_outputs(distribution, samples)
        graph = Graph([output for output in outputs if output.requires_grad])
        # preserved_buffers: checkpointed modules run again in a backward pass.
        with without_hooks(graph.hooks, slots.trained), preserved_buffers():
            scalar = _weighted_sum(outputs, graph, slots)
            batch = batch_shape(distribution)
            reached = [layer for layer in recorded if graph.reaches(layer.weight)]
            layers = verified(reached, scalar, batch[0] if batch else 1)
            if sharing is Sharing.REDUCE or corrected:
                require_samples(layers, batch[0])
            gradients = OutputGradients(distribution, layers, samples, generator)
            of_layers = [
                KroneckerBlock(layer, A, G)
                for layer, A, G in layer_factors(layers, gradients, sharing)
            ]
            covered = {owner for layer in layers for owner in layer.owners}
            rest = [p for p in slots.trained if p not in covered and graph.reaches(p)]
            of_rest = _remaining_blocks(rest, forward, data, gradients, max_dense)
            blocks: list[Block] = [*of_layers, *of_rest]
            for block in blocks:
                before = earlier.get(tuple(block.owners))
                if type(before) is type(block):
                    block.blend(before, decay)
            if corrected:
                correct(of_layers, gradients)
                for layer_block in of_layers:
                    before = earlier.get(tuple(layer_block.owners))
                    if isinstance(before, KroneckerBlock):
                        layer_block.blend_moments(before, decay)
    for layer in recorded:
        layer.calls.clear()  # they hold the graph, which would stay alive with the blocks
    without_block = set(slots.parameters) - {owner for block in blocks for owner in block.owners}
    kept = [block for block in earlier.values() if without_block.issuperset(block.owners)]
    return blocks + kept


def _weighted_sum(outputs: tuple[Tensor, ...], graph: Graph, slots: Slots) -> Tensor:
    """Sum all outputs with unequal weights, so that errors of layers cannot cancel.

    Raises ``ValueError`` if they depend on no parameter, ``NotTwiceDifferentiable`` if the backward
    pass is not a linear map.
    """
    weights = [
        torch.linspace(0.5, 1.5, output.numel()).to(output).view_as(output) for output in outputs
    ]
    reached = [p for p in slots.trained if graph.reaches(p)]
    if not reached:
        raise slots.unreached()

    def layers() -> None:
        pairs = [(y, w) for y, w in zip(outputs, weights, strict=True) if y.requires_grad]
        with_graph, along = zip(*pairs, strict=True)
        graph.require_linear(with_graph, reached, along)

    graph.try_once(reached[0], layers)
    with torch.enable_grad():
        scalars = [
            output.reshape(-1) @ weight.reshape(-1)
            for output, weight in zip(outputs, weights, strict=True)
        ]
        return torch.stack(scalars).sum()


def _remaining_blocks(
    remaining: list[Tensor],
    forward: Callable[[Any], Distributions],
    data: Any,
    gradients: OutputGradients,
    max_dense: int,
) -> list[Block]:
    """The block of the parameters that no layer covers (norms, a policy's log σ, tied weights):
    dense, or diagonal if they are many.

    Parameters
    ----------
    remaining
        The parameters, which the outputs depend on; if there are none, neither is the block.
    forward, data
        The forward function and its argument, for the dense block.
    gradients
        The backward passes, of which those of drawn labels give the diagonal.
    max_dense
        The largest number of elements for which the block is dense.

    Raises
    ------
    ValueError
        If there are more elements and labels are not drawn.
    """
    if not remaining:
        return []
    count = sum(flat.size(parameter) for parameter in remaining)
    if count <= max_dense:
        # From the forward function: its kernels may have to be replaced by differentiable ones.
        return [DenseBlock(remaining, Fisher(forward, remaining, data=data).to_dense())]
    if not gradients.samples:
        raise ValueError(
            f"{count} parameters are outside Linear, Conv1d, Conv2d (one group) and Embedding "
            "layers, or these use them in ways a factor does not describe (tied weights, a "
            f"frozen weight, dimension 0 not the batch); at most {max_dense} get a dense "
            "block. Pass samples=1 and a generator for a diagonal one, or parameters=[...] "
            "without them"
        )
    # Scores of drawn labels are independent with mean zero: the square of their sum has the
    # sum of their squares for its expectation, and no per-sample gradient is formed.
    like = remaining[0]
    diagonal = torch.zeros(count, dtype=flat.real_dtype(like), device=like.device)
    for total in gradients.sampled():
        pieces = torch.autograd.grad(total, remaining, retain_graph=True, allow_unused=True)
        diagonal += Slots.vector_of(remaining, pieces).square() / gradients.divisor
    return [DiagonalBlock(remaining, diagonal)]
