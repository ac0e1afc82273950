"""Generalised Gauss-Newton matrices: curvature of a convex loss through a linearised model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from natgrad.curvature.batched import BatchedOperator
from natgrad.curvature.metric_batch import MetricBatch
from natgrad.curvature.metrics import OutputMetric

Metric = Callable[[Tensor], OutputMetric]


class GaussNewton(BatchedOperator):
    """G = Σ_i Jᵢᵀ Mᵢ Jᵢ / N: the Jacobian J of the outputs, the metric M of a loss in them.

    ``metric(outputs)`` is :func:`squared_error`, :func:`cross_entropy`,
    :func:`binary_cross_entropy`, :func:`convex_loss` of any loss, or your own, all in
    ``natgrad.curvature.metrics``. ``reduction`` is that of the loss: "mean" as the metric counts
    (torch's convention for each), or "sum". The other arguments, the two forms and their cost are
    those of :class:`Fisher`; where targets matter, as for a general convex loss, let the forward
    function return the :class:`OutputMetric` itself and leave ``metric`` out.

    ``weights`` are shaped like the leading dimensions of the outputs.

    Positive semidefinite where M is. Equal to the Fisher matrix where the loss is −log p of an
    exponential family in its natural parameters, and to the Hessian where the model is linear.

    Source: Schraudolph, "Fast curvature matrix-vector products", 2002, section 3.

    >>> from natgrad.curvature.metrics import squared_error
    >>> weight = torch.ones(2, 1, requires_grad=True)
    >>> G = GaussNewton(torch.eye(2) @ weight, [weight], squared_error)     # mean of (y − t)²
    >>> G.to_dense().tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """

    def __init__(
        self,
        source: Tensor | OutputMetric | Callable[[Any], Any],
        parameters: Iterable[Tensor],
        metric: Metric | None = None,
        *,
        data: Any = None,
        chunk_size: int | None = None,
        weights: Tensor | None = None,
        reduction: Literal["mean", "sum"] = "mean",
        fraction: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        if reduction not in ("mean", "sum"):
            raise ValueError(f'reduction must be "mean" or "sum", got {reduction!r}')
        self._metric = metric
        super().__init__(
            source, parameters, data=data, chunk_size=chunk_size, weights=weights,
            fraction=fraction, generator=generator, mean=reduction == "mean",
        )  # fmt: skip

    def _record(self, outcome: Any, weights: Tensor | None, samples: int | None) -> MetricBatch:
        if self._metric is not None:
            if not isinstance(outcome, Tensor):
                raise TypeError(f"expected outputs as a tensor, got {type(outcome).__name__}")
            outcome = self._metric(outcome)
        if not isinstance(outcome, OutputMetric):
            raise TypeError(
                f"expected an OutputMetric, got {type(outcome).__name__}; name the metric of the "
                "loss: GaussNewton(outputs, parameters, cross_entropy)"
            )
        return MetricBatch(outcome, self._slots, weights)
