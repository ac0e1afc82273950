"""The product with Jᵀ M J of one batch."""

from __future__ import annotations

from torch import Tensor

from natgrad.autodiff.jacobian import Jacobian
from natgrad.curvature.metrics import OutputMetric
from natgrad.flat import Slots


class MetricBatch:
    """Σ_i wᵢ Jᵢᵀ Mᵢ Jᵢ, from the graph of the outputs, which is kept.

    Parameters
    ----------
    metric
        The outputs with their graph, and M.
    slots
        The parameters and their places in a vector (n,).
    weights
        wᵢ, shaped like the leading dimensions of the outputs; None for 1. They multiply M J v: a
        sample of weight 0, such as padding, adds nothing as long as its outputs and their
        derivatives are finite.

    Attributes
    ----------
    samples
        The number of samples, or the sum of their weights.
    reached
        The parameters that some output depends on.
    """

    def __init__(self, metric: OutputMetric, slots: Slots, weights: Tensor | None) -> None:
        samples = metric.samples
        if samples is None:
            first = metric.outputs[0] if metric.outputs else None
            samples = float(first.shape[0]) if first is not None and first.ndim else 1.0
        self.samples = samples
        self._weights: list[Tensor] | None = None
        if weights is not None:
            self._weights = [_aligned(weights, output, metric) for output in metric.outputs]
            # One weight may stand for several of the elements that the mean counts.
            self.samples = float(weights.sum()) * samples / max(weights.numel(), 1)
        self._multiply = metric.multiply
        self._jacobian = Jacobian(metric.outputs, slots)
        self._jacobian.record()
        self.reached = self._jacobian.reached

    def product(self, vector: Tensor) -> Tensor:
        """Compute Σ_i wᵢ Jᵢᵀ Mᵢ Jᵢ v for v (n,)."""
        products = self._multiply(self._jacobian.forward(vector))
        if self._weights is not None:
            products = tuple(
                weight * product for weight, product in zip(self._weights, products, strict=True)
            )
        return self._jacobian.transpose(products)


def _aligned(weights: Tensor, output: Tensor, metric: OutputMetric) -> Tensor:
    """Reshape weights to a factor that broadcasts against an output."""
    positions = list(output.shape)
    if metric.class_dim is not None:
        positions.pop(metric.class_dim)
    allowed = len(positions) if metric.weight_dims is None else metric.weight_dims
    if list(weights.shape) != positions[: min(weights.ndim, allowed)]:
        raise ValueError(
            f"weights must be shaped like the first dimensions (at most {allowed}) of "
            f"{tuple(positions)}, got {tuple(weights.shape)}"
        )
    factor = weights.reshape(list(weights.shape) + [1] * (len(positions) - weights.ndim))
    return factor if metric.class_dim is None else factor.unsqueeze(metric.class_dim)
