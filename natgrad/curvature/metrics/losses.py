"""Output-space curvature of losses: M = ∇²_y loss, with torch's conventions for their means."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from natgrad.autodiff.graph import Graph
from natgrad.autodiff.hooks import WithoutTensorHooks
from natgrad.curvature.hessian import Hessian
from natgrad.curvature.metrics.output_metric import OutputMetric, Tensors


def squared_error(outputs: Tensor) -> OutputMetric:
    """Of ``F.mse_loss``, Σ (y − t)²: M = 2 I. A mean is over all elements, as torch's is."""
    return OutputMetric((outputs,), lambda tangents: (2 * tangents[0],), float(outputs.numel()))


def cross_entropy(logits: Tensor, *, dim: int | None = None) -> OutputMetric:
    """Of ``F.cross_entropy``: M = diag(p) − p pᵀ, p the softmax over the classes.

    Classes are along ``dim``, by default where torch has them: 1, and 0 for one sample. A mean is
    over all positions. Labels play no part; weigh ignored ones with 0: weights are shaped like the
    logits without the classes.
    """
    along = (1 if logits.ndim > 1 else 0) if dim is None else dim
    probabilities = logits.detach().softmax(along)

    def multiply(tangents: Tensors) -> Tensors:
        weighted = probabilities * tangents[0]
        return (weighted - probabilities * weighted.sum(dim=along, keepdim=True),)

    positions = logits.numel() / logits.shape[along]
    return OutputMetric((logits,), multiply, positions, class_dim=along % logits.ndim)


def binary_cross_entropy(logits: Tensor) -> OutputMetric:
    """Of ``F.binary_cross_entropy_with_logits``: M = p (1 − p). A mean is over all elements."""
    probabilities = logits.detach().sigmoid()
    variance = probabilities * (1 - probabilities)
    return OutputMetric(
        (logits,), lambda tangents: (variance * tangents[0],), float(logits.numel())
    )


def convex_loss(loss: Callable[[Tensor], Tensor]) -> Callable[[Tensor], OutputMetric]:
    """Of any twice differentiable ``loss(outputs)``, a *sum* over the batch: its exact Hessian.

    A mean is over the first dimension of the outputs. Positive semidefinite where the loss is
    convex in the outputs, which is the caller's promise. Cost: a double backward pass through the
    loss alone for every product. Raises :class:`natgrad.curvature.NotTwiceDifferentiable` for an
    autograd Function in it whose backward pass cannot be differentiated.

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
                Hessian(value, [point])  # which raises unless these can be differentiated twice

        def multiply(tangents: Tensors) -> Tensors:
            if not gradient.requires_grad:  # linear in the outputs
                return (torch.zeros_like(tangents[0]),)
            return torch.autograd.grad(gradient, point, tangents[0], retain_graph=True)

        # Elements of one sample may interact in the loss; samples must not.
        return OutputMetric((outputs,), multiply, weight_dims=1)

    return metric
