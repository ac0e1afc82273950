"""How far? Step sizes and line searches: a step that keeps its bound, or no step."""

from natgrad.trust_region.backtracking import LineSearchResult, LineSearchStatus, backtracking
from natgrad.trust_region.step_size import StepSize, StepSizeStatus, step_size

__all__ = [
    "LineSearchResult",
    "LineSearchStatus",
    "StepSize",
    "StepSizeStatus",
    "backtracking",
    "step_size",
]
