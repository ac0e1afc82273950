"""What one step of an optimizer did, or why it did nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from natgrad.solvers import Status


class OptimizerStatus(Enum):
    """How a step ended; the value says what the caller can do about it.

    All but ACCEPTED leave the parameters bitwise as they were.
    """

    ACCEPTED = "the step was taken"
    CONVERGED = "the gradient is exactly zero: there is no direction to go"
    NO_GRADIENT = "every .grad is None: call loss.backward() first, or pass a closure that does"
    NO_IMPROVEMENT = (
        "no candidate lowered the loss by enough: at the accuracy of the loss's dtype this is an "
        "optimum, unless the closure is not deterministic or the curvature is another loss's; "
        "damping or radius were tightened where the optimizer adapts them"
    )
    NOT_DESCENT = (
        "the solver's direction does not descend: the curvature is not positive definite; add "
        "damping, or use TrustRegionNewton"
    )
    NONPOSITIVE_CURVATURE = (
        "dᵀK d < 0 along the solver's direction: the curvature is not positive and bounds no step; "
        "add damping, give a curvature that is positive semidefinite, or use TrustRegionNewton"
    )
    KL_EXCEEDED = (
        "no part of the step that was tried keeps the KL divergence within max_kl: the outputs are "
        "not finite near the start, or change by leaps"
    )
    NONFINITE_LOSS = "the loss is NaN or infinite, at the start or at every candidate"
    NONFINITE_GRADIENT = "the gradient holds NaN or infinity"
    NONFINITE_CURVATURE = (
        "a curvature product, or the step it gives, is NaN or infinite: look for square roots and "
        "logarithms at 0, whose second derivatives are"
    )

    @property
    def nonfinite(self) -> bool:
        return self.name.startswith("NONFINITE")


@dataclass(frozen=True)
class OptimizerReport:
    """The account of one step. NaN stands for what was not measured.

    ``loss`` and ``gradient_norm`` belong to the start of the step. ``iterations`` and ``products``
    are the solver's, ``evaluations`` counts calls of the closure, the first included. Reductions
    are of the loss (of its negative with ``maximize``), ``predicted_reduction`` by the quadratic
    model without damping, ``actual_reduction`` where a closure measured it. ``predicted_kl`` is
    ½ dᵀK d of the step d as taken, to second order the KL divergence where K is a Fisher matrix;
    ``kl`` is the divergence E[KL(p_old ‖ p_new)] itself, measured on the step's batches.
    ``damping`` and ``radius`` are those that the step was computed with. ``step_scale`` is the
    share of the solver's direction that was taken, ``solver`` what solved, ``solver_status`` how
    well.
    """

    status: OptimizerStatus
    loss: float = math.nan
    gradient_norm: float = math.nan
    iterations: int = 0
    products: int = 0
    evaluations: int = 0
    predicted_reduction: float = math.nan
    actual_reduction: float = math.nan
    predicted_kl: float = math.nan
    kl: float = math.nan
    damping: float = math.nan
    radius: float = math.nan
    step_scale: float = 0.0
    solver: str = ""
    solver_status: Status | None = None
    seconds: float = math.nan


class NonFiniteError(RuntimeError):
    """Three steps in a row met NaN or infinity; the parameters are as before the first of them."""
