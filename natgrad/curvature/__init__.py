"""Curvature operators v ↦ K v, built from a model's outputs and its parameters."""

from natgrad.autodiff.differentiation import NotTwiceDifferentiable, twice_differentiable
from natgrad.curvature import metrics
from natgrad.curvature.diagonal import Diagonal, Identity
from natgrad.curvature.empirical_fisher import EmpiricalFisher
from natgrad.curvature.fisher import Fisher
from natgrad.curvature.gauss_newton import GaussNewton
from natgrad.curvature.gram import Gram
from natgrad.curvature.hessian import Hessian
from natgrad.curvature.kronecker.blocks import DampingSplit
from natgrad.curvature.kronecker.factors import Sharing
from natgrad.curvature.kronecker.operator import Kronecker
from natgrad.curvature.low_rank import LowRank
from natgrad.curvature.metrics import OutputMetric, output_metric, register_metric
from natgrad.curvature.operator import Dense, FunctionOperator, LinearOperator
from natgrad.curvature.submatrix import Submatrix

__all__ = [
    "DampingSplit",
    "Dense",
    "Diagonal",
    "EmpiricalFisher",
    "Fisher",
    "FunctionOperator",
    "GaussNewton",
    "Gram",
    "Hessian",
    "Identity",
    "Kronecker",
    "LinearOperator",
    "LowRank",
    "NotTwiceDifferentiable",
    "OutputMetric",
    "Sharing",
    "Submatrix",
    "metrics",
    "output_metric",
    "register_metric",
    "twice_differentiable",
]
