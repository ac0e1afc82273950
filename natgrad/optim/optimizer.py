"""What all optimizers here share with torch.optim, and nothing of how a step is found."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from natgrad import flat
from natgrad.optim.growth import Growth
from natgrad.optim.objective import Closure, Objective, as_loss, gathered, kept_gradients
from natgrad.optim.observed_model import ObservedModel
from natgrad.optim.report import NonFiniteError, OptimizerReport, OptimizerStatus
from natgrad.optim.settings import require_least

MAX_NONFINITE = 3
Parameters = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


@dataclass(frozen=True)
class Start:
    """Where a step begins: ``theta`` (n,) of the parameters that have a gradient, the ``gradient``
    (n,) of what is minimised and its value, ``loss``, 0-d float64; ``objective`` calls the closure
    again. The last two are None without a closure."""

    parameters: list[Tensor]
    theta: Tensor
    gradient: Tensor
    loss: Tensor | None
    objective: Objective | None

    def evaluate(self, theta: Tensor) -> tuple[Tensor, float]:
        """(loss, 0) at θ, as :func:`natgrad.backtracking` wants it."""
        assert self.objective is not None
        return self.objective.value(self.parameters, theta, self.theta), 0.0


class Proposal(NamedTuple):
    """θ to go on from, None for the start, and the account; the rest of it is filled in later."""

    theta: Tensor | None
    report: OptimizerReport


class SecondOrderOptimizer(Optimizer):
    """The contract of ``torch.optim.Optimizer`` around a step that is found elsewhere.

    Subclasses define ``_compute_step(start) -> Proposal``. Here the closure is called, gradients
    are gathered from ``.grad`` (frozen parameters and those whose ``.grad`` is None take no part),
    a loss or gradient that is not finite ends the step before it begins, and unless the step is
    accepted the parameters stay bitwise as they were, exceptions included. ``.grad`` is left as it
    was.

    Numbers that belong to the whole step (``whole``) stand in every group and must agree; ``lr`` is
    each group's own.
    """

    last_step: OptimizerReport | None = None
    whole: tuple[str, ...] = ()

    def __init__(
        self, parameters: nn.Module | Parameters, defaults: dict[str, Any], model: nn.Module | None
    ) -> None:
        if isinstance(parameters, nn.Module):
            model = parameters if model is None else model
            parameters = parameters.parameters()
        self._observed = None if model is None else ObservedModel(model)
        self._growth = Growth()
        super().__init__(parameters, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch.optim; one dtype and device for all, float32 or float64. What belongs to the
        whole step is that of the other groups, as it is by now, where the new one does not say."""
        if self.param_groups:
            known = {name: self._setting(name) for name in self.whole}
            param_group = {**known, **param_group} if isinstance(param_group, dict) else param_group
        super().add_param_group(param_group)
        try:
            flat.check_alike(self._parameters())
            first = self._parameters()[0]
            if first.dtype not in (torch.float32, torch.float64):
                raise ValueError(
                    f"the parameters are {first.dtype}; curvature needs float32 or float64. Keep "
                    "the model in float32 and run its forward pass under torch.autocast"
                )
            self._check(self.param_groups[-1])
            for name in self.whole:
                self._setting(name)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def _check(self, group: dict[str, Any]) -> None:
        """Raise ``ValueError`` for settings of a group that are out of range."""
        require_least(group, 0, "lr")

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _setting(self, name: str) -> Any:
        values = [group[name] for group in self.param_groups]
        if any(value != values[0] for value in values):
            raise ValueError(f"{name} belongs to the whole step; the groups have {values}")
        return values[0]

    def _set_for_all_groups(self, name: str, value: Any) -> None:
        for group in self.param_groups:
            group[name] = value

    def _per_parameter(self, name: str, parameters: list[Tensor]) -> Tensor:
        """A number of each group, lr say: 0-d, or where groups differ (n,), one entry a
        parameter."""
        like = parameters[0]
        values = [float(group[name]) for group in self.param_groups]
        if len(set(values)) == 1:
            return torch.tensor(values[0], dtype=like.dtype, device=like.device)
        value_of = {
            parameter: value
            for group, value in zip(self.param_groups, values, strict=True)
            for parameter in group["params"]
        }
        return torch.cat([like.new_full((p.numel(),), value_of[p]) for p in parameters])

    def _remembered(self, name: str, parameters: list[Tensor]) -> Tensor | None:
        """A vector (n,) kept parameter by parameter in ``state``, or None: zeros where new."""
        found = [self.state[parameter].get(name) for parameter in parameters]
        if all(piece is None for piece in found):
            return None
        return flat.flatten(
            torch.zeros_like(parameter) if piece is None else piece
            for parameter, piece in zip(parameters, found, strict=True)
        )

    def _remember(self, name: str, parameters: list[Tensor], vector: Tensor) -> None:
        for parameter, piece in zip(parameters, flat.unflatten(vector, parameters), strict=True):
            self.state[parameter][name] = piece.clone()

    def _forget(self, name: str, parameters: list[Tensor]) -> None:
        for parameter in parameters:
            self.state[parameter].pop(name, None)

    @property
    def _counters(self) -> dict[str, Any]:
        """Numbers of the whole optimizer; torch saves state by parameter, so with the first one."""
        counters: dict[str, Any] = self.state[self._parameters()[0]]
        return counters

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch.optim. Batches whose gradients are thrown away are forgotten with them."""
        super().zero_grad(set_to_none)
        if self._observed is not None:
            self._observed.clear()

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """One step; returns what the first call of ``closure`` returned.

        ``closure`` is the standard one: zero_grad(), loss, loss.backward(), return loss; it must
        give the same loss for the same parameters. Where it raises at a candidate of a search the
        parameters are as they were; ``torch.linalg.LinAlgError`` there, from a matrix that cannot
        be factored, counts as an infinite loss. ``last_step`` says what happened. Raises
        :class:`NonFiniteError` at the third step in a row that met NaN or infinity,
        ``RuntimeError`` in a process group of several ranks.
        """
        began = time.perf_counter()
        _require_one_process()
        sign = -1.0 if "maximize" in self.whole and self._setting("maximize") else 1.0
        objective = None if closure is None else self._objective(closure, sign)
        returned = None if objective is None else self._first_evaluation(objective)
        measures = objective is not None and objective.measures
        start = self._start(returned if measures else None, objective, sign)
        proposal = self._step_or_restore(start)
        if not measures and proposal.report.status is OptimizerStatus.ACCEPTED:
            self._growth.see(start.gradient)
        seconds = time.perf_counter() - began
        loss = start.loss
        if loss is None and returned is not None:
            loss = sign * as_loss(returned)
        self._record(
            replace(
                proposal.report,
                loss=math.nan if loss is None else sign * float(loss),
                gradient_norm=float(torch.linalg.vector_norm(start.gradient, dtype=torch.float64)),
                evaluations=0 if objective is None else objective.evaluations,
                seconds=seconds,
            )
        )
        if self._observed is not None:
            self._observed.clear()
        return self._return_value(returned)

    def _first_evaluation(self, objective: Objective) -> Any:
        """What the closure returned at its first call. One that did not call the model, because it
        tells the loss of the backward pass before it, cannot measure another θ."""
        observed = self._observed
        if observed is None:
            return self._evaluate_first(objective)
        observed.called = False
        with observed.renewed():
            returned = self._evaluate_first(objective)
        objective.measures = observed.called
        return returned

    def _objective(self, closure: Closure, sign: float) -> Objective:
        return Objective(closure, self._parameters()[0].device, sign)

    def _return_value(self, returned: Any) -> Any:
        """What ``step`` returns for what the closure did."""
        return returned

    def _evaluate_first(self, objective: Objective) -> Any:
        """The closure's own call, whose gradients the step starts from."""
        return objective.first()

    def _start(self, returned: Any, objective: Objective | None, sign: float) -> Start:
        parameters = [p for p in self._parameters() if p.requires_grad and p.grad is not None]
        # A closure that returns nothing has told no loss: there is nothing to search by.
        loss = None if returned is None else sign * as_loss(returned)
        if loss is None:
            objective = None
        if not parameters:
            nothing = torch.zeros(0)
            return Start([], nothing, nothing, loss, objective)
        gradient = sign * gathered(parameters)
        return Start(parameters, flat.flatten(parameters), gradient, loss, objective)

    def _step_or_restore(self, start: Start) -> Proposal:
        """The proposal of ``_compute_step``, written into the parameters only if accepted."""
        if not start.parameters:
            return Proposal(None, OptimizerReport(OptimizerStatus.NO_GRADIENT))
        if start.loss is not None and not bool(torch.isfinite(start.loss)):
            return Proposal(None, OptimizerReport(OptimizerStatus.NONFINITE_LOSS))
        if not bool(torch.isfinite(start.gradient).all()):
            return Proposal(None, OptimizerReport(OptimizerStatus.NONFINITE_GRADIENT))
        if not bool(start.gradient.any()):
            return Proposal(None, OptimizerReport(OptimizerStatus.CONVERGED))
        theta: Tensor | None = None
        try:
            with ExitStack() as stack:
                if self._observed is not None:
                    stack.enter_context(self._observed.paused())
                if start.objective is not None:
                    stack.enter_context(kept_gradients(self._parameters()))
                proposal = self._compute_step(start)
            if proposal.theta is not None and not bool(torch.isfinite(proposal.theta).all()):
                status = OptimizerStatus.NONFINITE_CURVATURE
                proposal = Proposal(None, replace(proposal.report, status=status, step_scale=0.0))
            theta = proposal.theta
        finally:
            flat.assign(start.parameters, start.theta if theta is None else theta)
        return proposal

    @abstractmethod
    def _compute_step(self, start: Start) -> Proposal:
        """A step from a finite start with a gradient that is not zero."""

    def _record(self, report: OptimizerReport) -> None:
        self.last_step = report
        counters = self._counters
        count = counters.get("nonfinite_steps", 0) + 1 if report.status.nonfinite else 0
        counters["nonfinite_steps"] = count
        if count >= MAX_NONFINITE:
            raise NonFiniteError(
                f"{count} steps in a row met NaN or infinity, the last with {report.status.name}: "
                f"{report.status.value}. The parameters are as they were before the first of them"
            )

    def __getstate__(self) -> dict[str, Any]:
        # torch keeps three attributes; a copy of ours could not step without the others. What
        # schedulers patch onto the instance, and hooks, stay behind, as torch has it.
        return {
            name: value
            for name, value in self.__dict__.items()
            if not name.startswith(("_optimizer_", "_zero_grad")) and name != "step"
        }


def _require_one_process() -> None:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        ranks = distributed.get_world_size()
        if ranks > 1:
            raise RuntimeError(
                f"{ranks} ranks: gradients are averaged over them, losses and curvature are not "
                "yet, so that each rank would take a step of its own. Train in one process"
            )
