"""Trust-region and natural-gradient primitives for PyTorch.

A natural-gradient step answers three questions: how is distance measured (``curvature``), which
way (``solvers``), how far (``trust_region``). ``optim`` puts the answers together.
"""

from natgrad import curvature, flat, optim, solvers, trust_region
from natgrad.autodiff.function_module import FunctionModule
from natgrad.curvature import (
    EmpiricalFisher,
    Fisher,
    GaussNewton,
    Gram,
    Hessian,
    Kronecker,
    LinearOperator,
    LowRank,
    register_metric,
    twice_differentiable,
)
from natgrad.natural_step import Step, natural_step
from natgrad.solvers import (
    Solution,
    Status,
    SteihaugPath,
    cg,
    cholesky,
    lanczos,
    least_squares,
    minres,
    preconditioners,
    sample_space,
    steihaug,
)
from natgrad.trust_region import (
    LineSearchResult,
    LineSearchStatus,
    StepSize,
    StepSizeStatus,
    WolfeResult,
    WolfeStatus,
    approximate_wolfe,
    backtracking,
    reduction_ratio,
    step_size,
    update_damping,
    update_radius,
)

__version__ = "0.1.0"

__all__ = [
    "EmpiricalFisher",
    "Fisher",
    "FunctionModule",
    "GaussNewton",
    "Gram",
    "Hessian",
    "Kronecker",
    "LineSearchResult",
    "LineSearchStatus",
    "LinearOperator",
    "LowRank",
    "Solution",
    "Status",
    "SteihaugPath",
    "Step",
    "StepSize",
    "StepSizeStatus",
    "WolfeResult",
    "WolfeStatus",
    "approximate_wolfe",
    "backtracking",
    "cg",
    "cholesky",
    "curvature",
    "flat",
    "lanczos",
    "least_squares",
    "minres",
    "natural_step",
    "optim",
    "preconditioners",
    "reduction_ratio",
    "register_metric",
    "sample_space",
    "solvers",
    "steihaug",
    "step_size",
    "trust_region",
    "twice_differentiable",
    "update_damping",
    "update_radius",
]
