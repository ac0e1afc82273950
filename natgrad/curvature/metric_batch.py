"""Jᵀ M J of one batch."""

from __future__ import annotations

from torch import Tensor

from natgrad.curvature.jacobian import Jacobian
from natgrad.curvature.metrics import OutputMetric
from natgrad.curvature.slots import Slots


class MetricBatch:
    """Σ_i wᵢ Jᵢᵀ Mᵢ Jᵢ from the kept graph of the outputs; without weights, wᵢ = 1.

    Weights (leading dimensions of the outputs) come between M and Jᵀ: a sample of weight 0, padding
    say, has no part in the sum, whatever its outputs are, as long as they are finite.
    """

    def __init__(self, metric: OutputMetric, slots: Slots, weights: Tensor | None) -> None:
        samples = metric.samples
        if samples is None:
            samples = float(metric.outputs[0].shape[0]) if metric.outputs[0].ndim else 1.0
        self.samples = samples
        self._weights: list[Tensor] | None = None
        if weights is not None:
            self._weights = [_aligned(weights, output) for output in metric.outputs]
            # One weight stands for so many of what the mean counts.
            self.samples = float(weights.sum()) * samples / max(weights.numel(), 1)
        self._multiply = metric.multiply
        self._jacobian = Jacobian(metric.outputs, slots)
        self.reaches = self._jacobian.reaches

    def product(self, vector: Tensor) -> Tensor:
        products = self._multiply(self._jacobian.forward(vector))
        if self._weights is not None:
            products = tuple(
                weight * product for weight, product in zip(self._weights, products, strict=True)
            )
        return self._jacobian.transpose(products)


def _aligned(weights: Tensor, output: Tensor) -> Tensor:
    if output.shape[: weights.ndim] != weights.shape:
        raise ValueError(
            "weights must be shaped like the leading dimensions of every output, got "
            f"{tuple(weights.shape)} for an output of {tuple(output.shape)}"
        )
    return weights.reshape(weights.shape + (1,) * (output.ndim - weights.ndim))
