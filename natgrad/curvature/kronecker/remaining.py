"""The block of the parameters that no layer covers: norms, a policy's log σ, tied weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from natgrad.curvature.fisher import Fisher
from natgrad.curvature.kronecker.blocks import Block, DenseBlock, DiagonalBlock
from natgrad.curvature.kronecker.output_gradients import OutputGradients
from natgrad.curvature.metrics import Distributions
from natgrad.flat import Slots


def remaining_blocks(
    remaining: list[Tensor],
    forward: Callable[[Any], Distributions],
    data: Any,
    gradients: OutputGradients,
    max_dense: int,
) -> list[Block]:
    """Make the block of the remaining parameters: dense, or diagonal if they are many.

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
    count = sum(parameter.numel() for parameter in remaining)
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
    diagonal = torch.zeros(count, dtype=like.dtype, device=like.device)
    for total in gradients.sampled():
        pieces = torch.autograd.grad(total, remaining, retain_graph=True, allow_unused=True)
        diagonal += Slots.vector_of(remaining, pieces).square() / gradients.divisor
    return [DiagonalBlock(remaining, diagonal)]
