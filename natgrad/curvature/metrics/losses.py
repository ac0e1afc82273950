"""Curvature of losses in output space, M = ∇²_y loss, with torch's conventions for means."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from natgrad.autodiff.graph import Graph
from natgrad.autodiff.hooks import WithoutTensorHooks
from natgrad.curvature.hessian import Hessian
from natgrad.curvature.metrics.output_metric import OutputMetric, Tensors


def squared_error(outputs: Tensor) -> OutputMetric:
    """Return the metric of ``F.mse_loss``, Σ (y − t)²: M = 2 I.

    Parameters
    ----------
    outputs
        y of any shape. Targets play no part. A mean is over all elements, as in torch.
    """
    return OutputMetric((outputs,), lambda tangents: (2 * tangents[0],), float(outputs.numel()))


def cross_entropy(logits: Tensor, *, dim: int | None = None) -> OutputMetric:
    """Return the metric of ``F.cross_entropy``: M = diag(p) − p pᵀ, p the softmax over classes.

    Parameters
    ----------
    logits
        The logits of any shape. Labels play no part; give ignored ones the weight 0, with weights
        shaped like the logits without the classes. A mean is over all positions.
    dim
        The dimension of the classes. None: as in torch, 1, or 0 for logits of one dimension. Set it
        to −1 for a sequence model's (N, T, C).
    """
    along = (1 if logits.ndim > 1 else 0) if dim is None else dim
    probabilities = logits.detach().softmax(along)

    def multiply(tangents: Tensors) -> Tensors:
        weighted = probabilities * tangents[0]
        return (weighted - probabilities * weighted.sum(dim=along, keepdim=True),)

    positions = logits.numel() / logits.shape[along]
    return OutputMetric((logits,), multiply, positions, class_dim=along % logits.ndim)


def binary_cross_entropy(logits: Tensor) -> OutputMetric:
    """Return the metric of ``F.binary_cross_entropy_with_logits``: M = p (1 − p).

    Parameters
    ----------
    logits
        The logits of any shape. Labels play no part. A mean is over all elements.
    """
    probabilities = logits.detach().sigmoid()
    variance = probabilities * (1 - probabilities)
    return OutputMetric(
        (logits,), lambda tangents: (variance * tangents[0],), float(logits.numel())
    )


def convex_loss(loss: Callable[[Tensor], Tensor]) -> Callable[[Tensor], OutputMetric]:
    """Make the metric of any twice differentiable loss: its exact Hessian in the outputs.

    Parameters
    ----------
    loss
        Maps outputs to a scalar, a *sum* over the batch to which each sample adds its own part. You
        must know it to be convex in the outputs: otherwise the metric is not positive semidefinite.

    Returns
    -------
    callable
        Maps outputs to their :class:`OutputMetric`, with a mean over their first dimension. It
        raises ``ValueError`` if the loss is not a scalar, and
        :class:`natgrad.curvature.NotTwiceDifferentiable` if an autograd Function in it has a
        backward pass that cannot be differentiated.

    Notes
    -----
    Cost: a double backward pass through the loss alone for every product.

    Examples
    --------
    >>> metric = convex_loss(lambda y: y.exp().sum())(torch.zeros(2))
    >>> metric.multiply((torch.tensor([1.0, 2.0]),))[0].tolist()
    [1.0, 2.0]
    """

    def metric(outputs: Tensor) -> OutputMetric:
        with torch.enable_grad():
            point = outputs.detach().requires_grad_()
            with WithoutTensorHooks():
                value = loss(point)
            if value.numel() != 1:
                raise ValueError(
                    f"the loss must be a scalar, a sum over the batch, got {tuple(value.shape)}"
                )
            (gradient,) = torch.autograd.grad(value, point, create_graph=True)
            if value.requires_grad and Graph([value]).custom:
                Hessian(value, [point])  # raises unless these Functions are twice differentiable

        def multiply(tangents: Tensors) -> Tensors:
            if not gradient.requires_grad:  # the loss is linear in the outputs
                return (torch.zeros_like(tangents[0]),)
            return torch.autograd.grad(gradient, point, tangents[0], retain_graph=True)

        # weight_dims=1, since elements of one sample may interact in the loss; samples do not.
        return OutputMetric((outputs,), multiply, weight_dims=1)

    return metric
