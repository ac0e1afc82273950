"""The Fisher information matrix of a model that returns a distribution."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor

from natgrad.curvature.batched import BatchedOperator
from natgrad.curvature.metric_batch import MetricBatch
from natgrad.curvature.metrics import Distributions, batch_shape, output_metric

Forward = Callable[[Any], Distributions]


class Fisher(BatchedOperator):
    """F = (1/N) Σ_i E_{a ~ p_i}[∇log p_i(a) ∇log p_i(a)ᵀ], with p_i the i-th of N distributions.

    Exact and positive semidefinite by construction, F = mean of Jᵀ M J: one Jacobian product, the
    Fisher matrix M of the family in its own parameters (:mod:`natgrad.curvature.metrics`), one
    transposed product. It equals the Hessian of mean KL(p_old ‖ p_θ) at θ_old; no KL of the model
    is formed. N is the number of elements in the batch shape. A sequence or mapping of
    distributions stands for independent ones, the actions of a Tuple or Dict space.

    Two forms:

    - ``Fisher(distribution, parameters)`` keeps the distribution's graph. Cost: set-up about 1
      gradient, a product about 1 gradient; memory of one gradient and its recorded backward pass.
    - ``Fisher(forward, parameters, data=x, chunk_size=m)`` calls ``forward(x[i:i+m])`` anew for
      every chunk of every product. Cost: about 2.5 gradients a product, more where chunks are so
      small that the overhead of launching them shows; memory independent of N. All columns of
      ``F @ V`` share one pass. Without ``chunk_size`` the forward pass runs once and its graph is
      kept, as in the first form. ``data`` is a tensor, or a mapping or sequence of tensors, cut
      along dimension 0. ``fraction`` keeps so much of it, drawn once by ``generator``.

    With a forward function nothing else changes: generators, the buffers of modules in training
    mode (BatchNorm's statistics), ``.grad``;
    dropout draws the same masks in every product; kernels that cannot be differentiated twice are
    replaced (:func:`twice_differentiable`). In chunks, BatchNorm in training mode normalises by
    each chunk.

    ``weights`` (the leading dimensions of the batch shape; of ``data``, in the second form) make it
    Σ wᵢ Fᵢ / Σ wᵢ: 0 for padded steps or absent agents, whose inputs must be finite all the same
    (0 times a NaN is a NaN; fill padding before the forward pass).

    The parameters must stay as they are while F is in use (autograd refuses otherwise). Parameters
    that are frozen or unused have zero rows.

    Raises ``TypeError`` where the family has no metric, ``ValueError`` where the batch is empty,
    the distribution depends on none of the parameters, or weights do not fit.

    Reference: Martens, "New insights and perspectives on the natural gradient method", 2020,
    section 6 (Fisher as generalised Gauss-Newton); the shared-graph product is our own.

    >>> weight = torch.zeros(2, 3, requires_grad=True)
    >>> fisher = Fisher(torch.distributions.Categorical(logits=torch.ones(5, 2) @ weight), [weight])
    >>> (fisher @ torch.ones(6)).abs().max() < 1e-6      # equal logits: a direction without effect
    tensor(True)
    """

    @overload
    def __init__(
        self,
        source: Distributions,
        parameters: Iterable[Tensor],
        *,
        weights: Tensor | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self,
        source: Forward,
        parameters: Iterable[Tensor],
        *,
        data: Any,
        chunk_size: int | None = None,
        weights: Tensor | None = None,
        fraction: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None: ...
    def __init__(
        self,
        source: Distributions | Forward,
        parameters: Iterable[Tensor],
        *,
        data: Any = None,
        chunk_size: int | None = None,
        weights: Tensor | None = None,
        fraction: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            source, parameters, data=data, chunk_size=chunk_size, weights=weights,
            fraction=fraction, generator=generator,
        )  # fmt: skip

    def _record(
        self, outcome: Distributions, weights: Tensor | None, samples: int | None
    ) -> MetricBatch:
        shape = batch_shape(outcome)
        metric = output_metric(outcome)
        metric = replace(metric, samples=float(math.prod(shape)), weight_dims=len(shape))
        return MetricBatch(metric, self._slots, weights)
