"""The Fisher information matrix of a model that returns a distribution."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor

from natgrad.autodiff.function_module import Parameters
from natgrad.curvature.batched import BatchedOperator
from natgrad.curvature.metric_batch import MetricBatch
from natgrad.curvature.metrics import Distributions, batch_shape, output_metric

Forward = Callable[..., Distributions]


class Fisher(BatchedOperator):
    """F = (1/N) Σ_i E_{a ~ p_i}[∇log p_i(a) ∇log p_i(a)ᵀ], with p_i the i-th of N distributions.

    F is exact and positive semidefinite by construction. It equals the Hessian of the mean
    KL(p_old ‖ p_θ) at θ_old. N is the number of elements in the batch shape.

    ``Fisher(distribution, parameters)`` keeps the distribution's graph. ``Fisher(forward,
    parameters, data=x)`` runs the forward function once and keeps its graph; with ``chunk_size=m``
    it calls ``forward(x[i:i+m])`` anew for every chunk of every product.

    Parameters
    ----------
    source
        A distribution of the model with its graph, or a forward function of ``data`` that returns
        one. A sequence or mapping of distributions stands for independent ones, such as the actions
        of a Tuple or Dict space.
    parameters
        The parameters to differentiate in, n elements, in the order of the vectors. Frozen and
        unused ones have zero rows. Do not change them while F is in use: products raise then.
        A mapping's are its values, and a forward function is then called as torch.func has it:
        ``source(parameters, data)``.
    data
        The argument of a forward function, N samples: a tensor, or mappings, lists and tuples of
        tensors, cut along dimension 0. Required with a function, refused without one.
    chunk_size
        The number of samples in one forward pass. Set it if the graph of all of them does not fit
        in memory: every product then runs the function anew for each chunk.
    weights
        Weights wᵢ >= 0, which make it Σ wᵢ Fᵢ / Σ wᵢ, shaped like the leading dimensions of the
        batch shape; with ``data``, its first is that of the samples. Set 0 for padded steps or
        absent agents. Their outputs must be finite (0 times NaN is NaN): fill padding before the
        forward pass.
    fraction
        The fraction of the samples to use, in (0, 1], drawn once. Lower it to make products cheaper
        and noisier.
    generator
        Draws these samples; required if ``fraction`` is below 1.

    Raises
    ------
    TypeError
        If the family has no metric.
    ValueError
        If the batch is empty, the distribution depends on none of the parameters, or arguments do
        not fit together.
    NotTwiceDifferentiable
        If a backward pass is not the derivative that products need: see
        :class:`natgrad.curvature.NotTwiceDifferentiable`.

    Notes
    -----
    F is the mean of Jᵀ M J: one Jacobian product, the Fisher matrix M of the family in its own
    parameters (:mod:`natgrad.curvature.metrics`), one transposed product. No KL of the model is
    formed.

    Running a forward function has no side effects: generators, ``.grad`` and buffers of modules in
    training mode (BatchNorm's statistics) stay unchanged. Dropout draws the same masks in every
    product, and kernels that cannot be differentiated twice are replaced
    (:func:`twice_differentiable`). In chunks, BatchNorm in training mode normalises by each chunk.

    Cost: with a graph that is kept, set-up and each product take about 1 gradient, and the memory
    is that of one gradient and its recorded backward pass. In chunks, about 2.5 gradients a
    product, more if chunks are so small that launching them takes the time; memory independent of
    N. All columns of ``F @ V`` share one pass.

    Source: Martens, "New insights and perspectives on the natural gradient method", 2020,
    section 6 (Fisher as generalised Gauss-Newton). The product on a shared graph is new here.

    Examples
    --------
    >>> weight = torch.zeros(2, 3, requires_grad=True)
    >>> fisher = Fisher(torch.distributions.Categorical(logits=torch.ones(5, 2) @ weight), [weight])
    >>> (fisher @ torch.ones(6)).abs().max() < 1e-6      # equal logits: a direction without effect
    tensor(True)
    """

    @overload
    def __init__(
        self,
        source: Distributions,
        parameters: Parameters,
        *,
        weights: Tensor | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self,
        source: Forward,
        parameters: Parameters,
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
        parameters: Parameters,
        *,
        data: Any = None,
        chunk_size: int | None = None,
        weights: Tensor | None = None,
        fraction: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            source,
            parameters,
            data=data,
            chunk_size=chunk_size,
            weights=weights,
            fraction=fraction,
            generator=generator,
        )

    def _record(
        self, outcome: Distributions, weights: Tensor | None, samples: int | None
    ) -> MetricBatch:
        shape = batch_shape(outcome)
        metric = output_metric(outcome)
        metric = replace(metric, samples=float(math.prod(shape)), weight_dims=len(shape))
        return MetricBatch(metric, self._slots, weights)
