"""Curvature in output space: metrics of distributions and losses, and a registry to add others."""

import natgrad.curvature.metrics.families  # noqa: F401  registers the closed forms
from natgrad.curvature.metrics.kl import kl_divergence, mean_kl
from natgrad.curvature.metrics.losses import (
    binary_cross_entropy,
    convex_loss,
    cross_entropy,
    squared_error,
)
from natgrad.curvature.metrics.output_metric import (
    Distributions,
    OutputMetric,
    batch_shape,
    output_metric,
    register_metric,
)
from natgrad.curvature.metrics.root import root_outputs

__all__ = [
    "Distributions",
    "OutputMetric",
    "batch_shape",
    "binary_cross_entropy",
    "convex_loss",
    "cross_entropy",
    "kl_divergence",
    "mean_kl",
    "output_metric",
    "register_metric",
    "root_outputs",
    "squared_error",
]
