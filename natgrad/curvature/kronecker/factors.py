"""The Kronecker factors of layers, from their inputs and output gradients."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

import torch
from torch import Tensor, nn

from natgrad.autodiff.layers import Layer
from natgrad.curvature.kronecker.layer_block import KroneckerBlock
from natgrad.curvature.kronecker.output_gradients import OutputGradients


class Sharing(Enum):
    """How positions that share weights (time steps, pixels) enter a factor.

    Attributes
    ----------
    EXPAND
        Every position counts as a sample of its own. For models with an output for each position,
        such as language models.
    REDUCE
        Positions are summed (gradients) or averaged (inputs) first. For models with one output for
        all positions, such as image classifiers.
    """

    EXPAND = "every position is a sample of its own: outputs per position, as in language models"
    REDUCE = "positions are summed first: one output for all of them, as in image classifiers"


def require_samples_drawn(samples: int) -> None:
    """Raise ``ValueError`` unless ``samples`` is a valid number of labels to draw."""
    if not isinstance(samples, int) or samples < 1:
        raise ValueError(
            f"samples, the labels drawn for a batch element, must be at least 1, or None for exact "
            f"factors; got {samples}"
        )


def require_samples(layers: list[Layer], samples: int) -> None:
    """Raise ``ValueError`` unless each layer saw one row for each of so many samples."""
    for layer in layers:
        if len(layer.rows()) != samples:
            raise ValueError(
                f"REDUCE and corrected=True need to tell the samples apart, but {layer.module} saw "
                f"{len(layer.rows())} rows for {samples} samples; keep dimension 0 of its input "
                "the batch, (N, T, d) and not (N · T, d)"
            )


def layer_factors(
    layers: list[Layer], gradients: OutputGradients, sharing: Sharing
) -> Iterator[tuple[Layer, Tensor, Tensor]]:
    """Yield each layer with its factors A and G.

    Parameters
    ----------
    layers
        The layers, with the inputs of their calls.
    gradients
        Their output gradients, in passes.
    sharing
        How positions enter.

    Yields
    ------
    tuple
        The layer, A (d_in, d_in), and G (d_out, d_out). A is its diagonal (d_in,) for an embedding
        with expanded positions.
    """
    if not layers:
        return
    moments: list[Tensor | None] = [None] * len(layers)
    # With REDUCE the averaged inputs leave padding out already.
    for rows in gradients.passes(masked=sharing is Sharing.EXPAND):
        for index, gradient in enumerate(rows):
            g = gradient.sum(dim=1) if sharing is Sharing.REDUCE else gradient.flatten(0, 1)
            moment = g.mT @ g / gradients.divisor
            before = moments[index]
            moments[index] = moment if before is None else before + moment
    for layer, G in zip(layers, moments, strict=True):
        assert G is not None
        yield layer, _input_factor(layer, sharing), G


def _input_factor(layer: Layer, sharing: Sharing) -> Tensor:
    """Compute A (d_in, d_in), or its diagonal (d_in,) for an embedding's expanded positions."""
    rows = layer.rows()
    if sharing is Sharing.REDUCE:
        a = layer.mean_rows()
        return a.mT @ a / len(a)
    if isinstance(layer.module, nn.Embedding):
        counts = torch.bincount(rows.flatten(), minlength=layer.module.num_embeddings)
        if layer.module.padding_idx is not None:
            counts[layer.module.padding_idx] = 0
        return counts.to(layer.weight.dtype) / rows.numel()
    a = rows.flatten(0, 1)
    return a.mT @ a / len(a)


def correct(blocks: list[KroneckerBlock], gradients: OutputGradients) -> None:
    """Replace the blocks' eigenvalues by second moments of per-sample gradients Σ_r g_r a_rᵀ.

    The moments are taken in the eigenbasis, and sum over positions with either :class:`Sharing`.
    """
    if not blocks:
        return
    rotated = [block.rotated_inputs() for block in blocks]
    sums: list[Tensor | None] = [None] * len(blocks)
    for rows in gradients.passes(masked=True):
        for index, (block, gradient) in enumerate(zip(blocks, rows, strict=True)):
            moment = block.second_moment(rotated[index], gradient)
            before = sums[index]
            sums[index] = moment if before is None else before + moment
    for block, total in zip(blocks, sums, strict=True):
        assert total is not None
        block.correct(total / gradients.divisor)
