"""Nonlinear conjugate gradients: a direction from two gradients, a length from a line search."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from natgrad.optim.arguments import require_counts
from natgrad.optim.objective import Start
from natgrad.optim.optimizer import Parameters, Proposal, SecondOrderOptimizer
from natgrad.optim.report import OptimizerReport, OptimizerStatus
from natgrad.solvers.scaling import power_of_two
from natgrad.trust_region import WolfeResult, WolfeStatus, approximate_wolfe
from natgrad.trust_region.approximate_wolfe import Slope

ETA = 0.4  # how negative β may be, of the paper of 2013
FIRST, PROBE, GROW = 0.01, 0.1, 2.0  # ψ₀, ψ₁, ψ₂ of the paper's section 4


class NonlinearCG(SecondOrderOptimizer):
    """Minimise by θ ← θ + α d, d ← −g + β d, with α from an approximate Wolfe line search.

    Takes any standard closure, and nothing but gradients. β = (y − 2 d ‖y‖²/dᵀy)ᵀg / dᵀy, y the
    change of the gradient, not below η dᵀg₋ / ‖d‖²: d descends after any line search.
    Where the search along d fails it is made along −g in the same step.

    Parameters
    ----------
    params
        Parameters, named parameters or groups, as torch.optim takes them.
    lr
        The factor on the first length that each search tries, the same for all groups. Lower it if
        the first candidates overflow.
    maximize
        Whether to ascend.
    max_evaluations
        Evaluations of a line search at most. Lower it for expensive closures.

    Raises
    ------
    TypeError
        From ``step`` without a closure.

    Notes
    -----
    Cost: memory of two vectors; each evaluation of the search is a call of the closure.

    Source: Hager & Zhang 2005; the bound on β of their "The limited memory conjugate gradient
    method", 2013, equation 2.3, which the scale of the loss does not change.

    Examples
    --------
    >>> x = torch.tensor([-1.2, 1.0], dtype=torch.float64, requires_grad=True)
    >>> optimizer = NonlinearCG([x])
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
    ...     loss.backward()
    ...     return loss
    >>> for _ in range(60):
    ...     _ = optimizer.step(closure)
    >>> bool(closure() < 1e-20)
    True
    """

    whole = ("lr", "maximize")

    counters: ClassVar[dict[str, Any]] = {**SecondOrderOptimizer.counters, "length": None}

    def __init__(
        self,
        params: Parameters,
        *,
        lr: float = 1.0,
        maximize: bool = False,
        max_evaluations: int = 40,
    ) -> None:
        require_counts(max_evaluations=max_evaluations)
        self._max_evaluations = max_evaluations
        super().__init__(params, {"lr": lr, "maximize": maximize}, None)

    def _vectors(self) -> tuple[str, ...]:
        return "gradient", "direction"

    def _compute_step(self, start: Start) -> Proposal:
        if start.objective is None or start.loss is None:
            raise TypeError(
                "NonlinearCG needs step(closure), and the loss that the closure returns: "
                "zero_grad(), compute the loss, loss.backward(), return loss"
            )
        if not start.objective.computes:
            raise TypeError(
                "the closure computed no gradient, which NonlinearCG needs at every point that it "
                "tries: put zero_grad() and loss.backward() into the closure"
            )
        if not self._rate():
            return Proposal(
                None, OptimizerReport(OptimizerStatus.NO_IMPROVEMENT, solver="hager_zhang")
            )
        # In units of the gradient: no square of it, nor a product, leaves the dtype's range.
        unit = power_of_two(start.gradient.double())
        g, loss = start.gradient.double() / unit, float(start.loss) / float(unit)
        if not math.isfinite(loss):  # the decrease along g is below the loss's rounding
            return Proposal(
                None, OptimizerReport(OptimizerStatus.NO_IMPROVEMENT, solver="hager_zhang")
            )
        direction = self._direction(start, g, unit)
        found = self._search(start, g, direction, loss, unit)
        if not found.accepted and not torch.equal(direction, -g):
            self._counters["length"] = None
            direction = -g
            found = self._search(start, g, direction, loss, unit)
        length = found.alpha / float(unit)
        report = OptimizerReport(
            OptimizerStatus.ACCEPTED,
            step_scale=length,
            solver="hager_zhang",
            actual_reduction=(loss - found.value) * float(unit),
        )
        if not found.accepted:
            nonfinite = found.status is WolfeStatus.NONFINITE
            status = OptimizerStatus.NONFINITE_LOSS if nonfinite else OptimizerStatus.NO_IMPROVEMENT
            for name in ("gradient", "direction"):
                self._forget(name, start.parameters)
            return Proposal(None, OptimizerReport(status, solver="hager_zhang"))
        self._remember("gradient", start.parameters, start.gradient)
        self._remember("direction", start.parameters, (unit * direction).to(start.theta))
        self._counters["length"] = length
        return Proposal(_along(start, direction, found.alpha), report)

    def _direction(self, start: Start, g: Tensor, unit: Tensor) -> Tensor:
        last, d = (self._remembered(name, start.parameters) for name in ("gradient", "direction"))
        if last is None or d is None:
            return -g
        last, d = last.double() / unit, d.double() / unit
        y = g - last
        dy = d @ y
        beta = (y @ g - 2 * (y @ y) * (d @ g) / dy) / dy
        beta = torch.maximum(beta, ETA * (d @ last) / (d @ d))
        direction = beta * d - g
        descends = (direction @ g < 0) & torch.isfinite(direction).all()
        return direction if bool(descends) else -g

    def _search(
        self, start: Start, g: Tensor, direction: Tensor, loss: float, unit: Tensor
    ) -> WolfeResult:
        assert start.objective is not None
        objective = start.objective

        def evaluate(alpha: float) -> tuple[float, float]:
            theta = _along(start, direction, alpha)
            if not bool(torch.isfinite(theta).all()):
                return math.inf, math.inf
            value, gradient = objective.value_and_gradient(start.parameters, theta)
            return float(value / unit), float(gradient.double() / unit @ direction)

        slope = float(g @ direction)
        last: float | None = self._counters.get("length")
        initial = None
        if last is not None:
            initial = self._again(last * float(unit), loss, slope, evaluate)
        if initial is None:
            initial = self._first_length(start, g, loss)
        return approximate_wolfe(
            evaluate,
            initial=initial,
            value=loss,
            slope=slope,
            max_evaluations=self._max_evaluations,
        )

    def _first_length(self, start: Start, g: Tensor, loss: float) -> float:
        """I0: a hundredth of the parameters' size."""
        steepest = float(g.abs().amax())
        largest = float(start.theta.abs().amax()) / steepest
        return self._rate() * FIRST * (largest or 2 * abs(loss) / float(g @ g) or 1 / steepest)

    def _again(self, last: float, loss: float, slope: float, evaluate: Slope) -> float | None:
        """I1, I2: the minimum of a parabola through a short probe, or twice the ``last`` length;
        None where that is out of range."""
        probe = PROBE * last
        value, _ = evaluate(probe)
        rise = value - loss - probe * slope
        length = GROW * last
        if value <= loss and rise > 0:
            length = -slope * probe**2 / (2 * rise)
        length *= self._rate()
        return length if 0 < length < math.inf else None

    def _rate(self) -> float:
        return float(self._setting("lr"))


def _along(start: Start, direction: Tensor, alpha: float) -> Tensor:
    return (start.theta.double() + alpha * direction).to(start.theta)
