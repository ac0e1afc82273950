"""The second moment of per-sample gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from natgrad.curvature.batched import BatchedOperator
from natgrad.curvature.metric_batch import MetricBatch
from natgrad.curvature.metrics import OutputMetric


class EmpiricalFisher(BatchedOperator):
    """E = (1/N) Σ_i gᵢ gᵢᵀ with gᵢ = ∇log p(yᵢ | xᵢ), from ``log_probs`` of any shape, N in all.

    Per-sample losses do as well: the sign does not matter. Labels are the data's, not the model's
    own draws, so that this is *not* the Fisher matrix away from a perfect fit; it differs from it
    in direction, not in scale alone. No per-sample gradient is formed: E = JᵀJ / N with J the
    Jacobian of ``log_probs``. Forms, arguments, cost and errors are those of :class:`Fisher`;
    ``forward`` returns the log-probabilities.

    Source: Kunstner, Balles & Hennig, "Limitations of the empirical Fisher approximation", 2019.

    >>> weight = torch.ones(2, requires_grad=True)
    >>> EmpiricalFisher(torch.tensor([[1.0, 0.0], [0.0, 2.0]]) @ weight, [weight]).to_dense()
    tensor([[0.5000, 0.0000],
            [0.0000, 2.0000]])
    """

    def __init__(
        self,
        source: Tensor | Callable[[Any], Tensor],
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
