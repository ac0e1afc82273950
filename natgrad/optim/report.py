"""How a step went: its status and report, and the error for a run of bad steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
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
        """Whether the step met NaN or infinity."""
        return self.name.startswith("NONFINITE")


@dataclass(frozen=True)
class OptimizerReport:
    """The measurements of one step. NaN stands for a value that was not measured.

    Attributes
    ----------
    status
        How the step ended.
    loss
        The loss at the start of the step, as the closure returns it.
    gradient_norm
        The norm of the gradient at the start of the step.
    iterations
        Iterations of the solver.
    products
        Curvature products of the step.
    evaluations
        Calls of the closure, the first included.
    predicted_reduction
        The reduction of the loss (with ``maximize``, of its negative) by the quadratic model
        without damping.
    actual_reduction
        The same reduction as a closure measured it.
    predicted_kl
        ½ dᵀK d of the step d as taken: the KL divergence to second order, in nats, if K is a Fisher
        matrix.
    kl
        The divergence E[KL(p_old ‖ p_new)] itself, in nats, measured on the step's batches.
    damping
        The damping that the step was computed with.
    radius
        The radius of the trust region that the step was computed with.
    step_scale
        The share of the solver's direction that was taken, 0 for a refused step.
    solver
        The name of the solver.
    solver_status
        How the solver ended, None if it did not run.
    seconds
        The duration of the step, calls of the closure included.
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

    def scalars(self) -> dict[str, float]:
        """Return the numbers that were measured, by the names of their fields, for a logger.

        ``accepted`` is 1 for a step that was taken, else 0. Numbers that were not measured are left
        out; infinite ones, which JSON has no word for, stay.

        Examples
        --------
        >>> OptimizerReport(OptimizerStatus.ACCEPTED, loss=0.5, iterations=3).scalars()["loss"]
        0.5
        """
        numbers = {
            field.name: float(value)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), (int, float))
        }
        numbers["accepted"] = float(self.status is OptimizerStatus.ACCEPTED)
        return {name: number for name, number in numbers.items() if not math.isnan(number)}


class NonFiniteError(RuntimeError):
    """Three steps in a row met NaN or infinity; the parameters are as before the first of them."""
