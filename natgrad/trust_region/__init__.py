"""How far? Step sizes, line searches and radii: a step that keeps its bound, or no step."""

from natgrad.trust_region.approximate_wolfe import (
    WolfeResult,
    WolfeStatus,
    approximate_wolfe,
)
from natgrad.trust_region.backtracking import LineSearchResult, LineSearchStatus, backtracking
from natgrad.trust_region.damping import update_damping
from natgrad.trust_region.radius import update_radius
from natgrad.trust_region.reduction_ratio import reduction_ratio
from natgrad.trust_region.step_size import StepSize, StepSizeStatus, step_size

__all__ = [
    "LineSearchResult",
    "LineSearchStatus",
    "StepSize",
    "StepSizeStatus",
    "WolfeResult",
    "WolfeStatus",
    "approximate_wolfe",
    "backtracking",
    "reduction_ratio",
    "step_size",
    "update_damping",
    "update_radius",
]
