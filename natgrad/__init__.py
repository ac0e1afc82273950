"""Trust-region and natural-gradient primitives for PyTorch.

A natural-gradient step answers three questions: how is distance measured (``curvature``), which
way (``solvers``), how far (``trust_region``).
"""

from natgrad import curvature, flat, solvers, trust_region
from natgrad.curvature import Fisher, LinearOperator, register_metric
from natgrad.solvers import Solution, Status, cg
from natgrad.trust_region import (
    LineSearchResult,
    LineSearchStatus,
    StepSize,
    StepSizeStatus,
    backtracking,
    reduction_ratio,
    step_size,
    update_damping,
    update_radius,
)

__version__ = "0.1.0"

__all__ = [
    "Fisher",
    "LineSearchResult",
    "LineSearchStatus",
    "LinearOperator",
    "Solution",
    "Status",
    "StepSize",
    "StepSizeStatus",
    "backtracking",
    "cg",
    "curvature",
    "flat",
    "reduction_ratio",
    "register_metric",
    "solvers",
    "step_size",
    "trust_region",
    "update_damping",
    "update_radius",
]
