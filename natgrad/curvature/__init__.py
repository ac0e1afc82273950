"""How is distance measured? Operators v ↦ K v from a model's outputs and its parameters."""

from natgrad.curvature.dense import Dense
from natgrad.curvature.fisher import Fisher
from natgrad.curvature.function_operator import FunctionOperator
from natgrad.curvature.metrics import OutputMetric, output_metric, register_metric
from natgrad.curvature.operator import LinearOperator

__all__ = [
    "Dense",
    "Fisher",
    "FunctionOperator",
    "LinearOperator",
    "OutputMetric",
    "output_metric",
    "register_metric",
]
