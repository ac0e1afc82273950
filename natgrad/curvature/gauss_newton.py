"""Generalised Gauss-Newton matrices: the curvature of a convex loss of a linearised model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from natgrad.autodiff.function_module import Parameters
from natgrad.curvature.batched import BatchedOperator
from natgrad.curvature.metric_batch import MetricBatch
from natgrad.curvature.metrics import OutputMetric

Metric = Callable[[Tensor], OutputMetric]


class GaussNewton(BatchedOperator):
    """G = Σ_i Jᵢᵀ Mᵢ Jᵢ / N, with J the Jacobian of the outputs and M = ∇²_y loss in the outputs.

    G is positive semidefinite if M is. It equals the Fisher matrix if the loss is −log p of an
    exponential family in its natural parameters, and the Hessian if the model is linear.

    Parameters
    ----------
    source
        The outputs with their graph, an :class:`OutputMetric` of them, or a forward function of
        ``data`` that returns either. Return the metric if the loss's curvature depends on targets,
        as for a general convex loss.
    parameters
        The parameters to differentiate in, n elements, in the order of the vectors. Frozen and
        unused ones have zero rows. Do not change them while G is in use: products raise then.
        A mapping's are its values, and a forward function is then called as torch.func has it:
        ``source(parameters, data)``.
    metric
        Maps outputs to their :class:`OutputMetric`: ``squared_error``, ``cross_entropy``,
        ``binary_cross_entropy`` or ``convex_loss(loss)`` of :mod:`natgrad.curvature.metrics`, or
        your own. None if ``source`` gives the metric itself.
    data
        The argument of a forward function, N samples: a tensor, or mappings, lists and tuples of
        tensors, cut along dimension 0. Required with a function, refused without one.
    chunk_size
        The number of samples in one forward pass. Set it if the graph of all of them does not fit
        in memory: every product then runs the function anew for each chunk.
    weights
        Weights wᵢ >= 0, shaped like the leading dimensions of the outputs (without the classes of
        a cross-entropy). Set 0 for padding, whose outputs must be finite.
    reduction
        That of the loss: "mean", with N as torch counts for each metric, or "sum", which leaves the
        division out.
    fraction
        The fraction of the samples to use, in (0, 1], drawn once. Lower it to make products cheaper
        and noisier.
    generator
        Draws these samples; required if ``fraction`` is below 1.

    Raises
    ------
    TypeError
        If the outputs are not a tensor, or no metric is given.
    ValueError
        If the batch is empty, the outputs depend on none of the parameters, or arguments do not
        fit together.
    NotTwiceDifferentiable
        As for :class:`Fisher`.

    Notes
    -----
    Costs, and the guarantees for a forward function, are those of :class:`Fisher`.
    Source: Schraudolph, "Fast curvature matrix-vector products", 2002, section 3.

    Examples
    --------
    >>> from natgrad.curvature.metrics import squared_error
    >>> weight = torch.ones(2, 1, requires_grad=True)
    >>> G = GaussNewton(torch.eye(2) @ weight, [weight], squared_error)     # mean of (y − t)²
    >>> G.to_dense().tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """

    def __init__(
        self,
        source: Tensor | OutputMetric | Callable[..., Any],
        parameters: Parameters,
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
            source,
            parameters,
            data=data,
            chunk_size=chunk_size,
            weights=weights,
            fraction=fraction,
            generator=generator,
            mean=reduction == "mean",
        )

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
