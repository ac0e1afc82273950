"""The second moment of per-sample gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from natgrad.autodiff.function_module import Parameters
from natgrad.curvature.batched import BatchedOperator
from natgrad.curvature.metric_batch import MetricBatch
from natgrad.curvature.metrics import OutputMetric


class EmpiricalFisher(BatchedOperator):
    """E = (1/N) Σ_i gᵢ gᵢᵀ with gᵢ = ∇log p(yᵢ | xᵢ), the second moment of per-sample gradients.

    The labels are the data's, not drawn from the model, so that E is *not* the Fisher matrix away
    from a perfect fit: it differs in direction, not only in scale.

    Parameters
    ----------
    source
        The log-probabilities log p(yᵢ | xᵢ) with their graph, a tensor of any shape with N
        elements, or a forward function of ``data`` that returns them, one a sample. Per-sample
        losses serve too: the sign does not matter.
    parameters
        The parameters to differentiate in, n elements, in the order of the vectors. Frozen and
        unused ones have zero rows. Do not change them while E is in use: products raise then.
        A mapping's are its values, and a forward function is then called as torch.func has it:
        ``source(parameters, data)``.
    data
        The argument of a forward function, N samples: a tensor, or mappings, lists and tuples of
        tensors, cut along dimension 0. Required with a function, refused without one.
    chunk_size
        The number of samples in one forward pass. Set it if the graph of all of them does not fit
        in memory: every product then runs the function anew for each chunk.
    weights
        Weights wᵢ >= 0 of the samples, which make it Σ wᵢ gᵢ gᵢᵀ / Σ wᵢ, shaped like the leading
        dimensions of the log-probabilities. Set 0 for padding, whose values must be finite.
    fraction
        The fraction of the samples to use, in (0, 1], drawn once. Lower it to make products cheaper
        and noisier.
    generator
        Draws these samples; required if ``fraction`` is below 1.

    Raises
    ------
    TypeError
        If the log-probabilities are not a tensor.
    ValueError
        If they are reduced or empty, depend on none of the parameters, or arguments do not fit
        together.
    NotTwiceDifferentiable
        As for :class:`Fisher`.

    Notes
    -----
    No per-sample gradient is formed: E = JᵀJ / N with J the Jacobian of the log-probabilities.
    Costs, and the guarantees for a forward function, are those of :class:`Fisher`.
    Source: Kunstner, Balles & Hennig, "Limitations of the empirical Fisher approximation", 2019.

    Examples
    --------
    >>> weight = torch.ones(2, requires_grad=True)
    >>> EmpiricalFisher(torch.tensor([[1.0, 0.0], [0.0, 2.0]]) @ weight, [weight]).to_dense()
    tensor([[0.5000, 0.0000],
            [0.0000, 2.0000]])
    """

    def __init__(
        self,
        source: Tensor | Callable[..., Tensor],
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

    def _record(self, outcome: Tensor, weights: Tensor | None, samples: int | None) -> MetricBatch:
        if not isinstance(outcome, Tensor):
            raise TypeError(
                f"expected log-probabilities as a tensor, got {type(outcome).__name__}; give one "
                "entry a sample: distribution.log_prob(y)"
            )
        if samples is not None and outcome.shape[:1] != (samples,):
            raise ValueError(
                f"expected one log-probability for each of {samples} samples, got shape "
                f"{tuple(outcome.shape)}; do not reduce it: E is made of per-sample gradients"
            )
        metric = OutputMetric((outcome,), lambda tangents: tangents, float(outcome.numel()))
        return MetricBatch(metric, self._slots, weights)
