"""Losses that contradict what a model's outputs are said to mean, found by their gradients.

For a loss −log p the gradient in the outputs is a score, which lies in the range of the output's
Fisher matrix M. Where p = softmax(y), M y = p ⊙ y − p pᵀy has the null vector (1, …, 1): gradients
of every loss of p sum to 0 over the classes, those of squared errors or of independent Bernoullis
do not. A gradient does not show the labels, so that some contradictions are not seen: squared
errors and binary cross-entropies of one and the same output look alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

SOFTMAX = {"categorical": -1, "cross_entropy": 1}  # the dimension of the classes
NORMAL = {"normal", "squared_error"}
# The share of a softmax' gradient that may not sum to 0: penalties on logits, for example.
DRIFT = 0.1
# Of fewer samples no sum is told from a mean with weights.
FEW, PART = 8, 1 / 8


def contradictions(argument: str, name: str, outputs: Tensor, gradient: Tensor) -> list[str]:
    """The texts that name what is wrong; none if nothing is.

    Parameters
    ----------
    argument, name
        What the user wrote: ``likelihood="categorical"`` or ``loss="cross_entropy"``.
    outputs, gradient
        A model's outputs of one call, and the gradient of the loss in them.
    """
    outputs, gradient = outputs.detach().double(), gradient.detach().double()
    if not outputs.ndim or not bool(torch.isfinite(gradient).all()):
        return []
    said, found = f"{argument}={name!r}", []
    if name in SOFTMAX:
        dim = SOFTMAX[name] if outputs.ndim > 1 else -1
        if _drifts(outputs, gradient, dim):
            found.append(
                f"{said} says that the outputs are logits of classes, but the gradient of the loss "
                f"in them does not sum to 0 over the {outputs.shape[dim]} classes, as that of "
                "cross_entropy does: the curvature is another loss's. For mse_loss write "
                f"{argument}={_other(argument, 'normal')!r}, for binary_cross_entropy_with_logits "
                f"{argument}={_other(argument, 'bernoulli')!r}; cross_entropy takes logits, not "
                "probabilities"
            )
        largest, samples = 2.0, outputs.numel() // outputs.shape[dim]
    else:
        if any(_sums_to_zero(outputs, gradient, d) for d in {min(1, outputs.ndim - 1), -1}):
            found.append(
                f"{said}, but the gradient of the loss in the outputs sums to 0 over the classes, "
                "as that of cross_entropy does: the curvature is another loss's. For cross_entropy "
                f"write {argument}={_other(argument, 'categorical')!r}"
            )
        largest, samples = outputs[0].numel() if outputs.ndim > 1 else 1.0, len(outputs)
    # |p − t| is at most 1: a mean over N samples has a gradient of N · largest / N.
    size = float(gradient.abs().sum()) / largest
    if found or name in NORMAL or samples < FEW:
        return found
    if PART * samples < size <= samples:
        found.append(
            f"the gradient of the loss in the outputs is {size:.3g} times what the mean of −log p "
            f"over {samples} samples allows: the loss is a sum, and the curvature that of a mean. "
            'Use reduction="mean", or divide the loss by the number of samples'
        )
    return found


def _drifts(outputs: Tensor, gradient: Tensor, dim: int) -> bool:
    """Whether the gradient leaves the range of a softmax' Fisher matrix."""
    if outputs.shape[dim] < 2:
        return False
    # log-probabilities, for nll_loss: the null vector is taken away by log_softmax behind them.
    if bool((outputs.logsumexp(dim).abs() < 1e-2).all()):
        return False
    drift = gradient.sum(dim).abs().sum()
    return bool(drift > DRIFT * gradient.abs().sum())


def _sums_to_zero(outputs: Tensor, gradient: Tensor, dim: int) -> bool:
    """Whether it is in that range, and not for a reason of the outputs' own, such as their sum."""
    classes = outputs.shape[dim]
    if outputs.ndim < 2 or classes < 2:
        return False
    drift, size = gradient.sum(dim).abs(), gradient.abs().sum(dim)
    # p − t rounds by eps of 1, not of itself, where p is nearly t: compare with the largest.
    rounding = 8 * classes * torch.finfo(torch.float32).eps * size.max()
    sums = outputs.sum(dim)
    constant = float(sums.max() - sums.min()) <= 1e-3 * float(outputs.abs().sum(dim).max())
    return not constant and bool((drift <= rounding).all())


def _other(argument: str, likelihood: str) -> str:
    """The name of a likelihood, or of its loss."""
    losses = {
        "normal": "squared_error",
        "bernoulli": "binary_cross_entropy",
        "categorical": "cross_entropy",
    }
    return losses[likelihood] if argument == "loss" else likelihood
