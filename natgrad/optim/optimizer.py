"""The contract of torch.optim that all optimizers here share, around the search for a step."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from natgrad import flat
from natgrad.optim.arguments import require_least
from natgrad.optim.loop_warnings import GradientMarks, LoopWarnings
from natgrad.optim.objective import (
    Closure,
    ClosureForm,
    Objective,
    Start,
    as_loss,
    kept_gradients,
    start_of,
)
from natgrad.optim.observed_model import ObservedModel
from natgrad.optim.report import NonFiniteError, OptimizerReport, OptimizerStatus
from natgrad.optim.step_state import StatefulOptimizer

MAX_NONFINITE = 3
Parameters = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class Proposal(NamedTuple):
    """θ to go on from, None to stay, and the report, without the fields about the start."""

    theta: Tensor | None
    report: OptimizerReport


class SecondOrderOptimizer(StatefulOptimizer):
    """The contract of ``torch.optim.Optimizer`` around a step that a subclass finds.

    Subclasses define ``_compute_step(start) -> Proposal``. Here the closure is called, gradients
    are gathered from ``.grad`` (frozen parameters and those whose ``.grad`` is None take no part),
    a loss or gradient that is not finite ends the step before it begins, and unless the step is
    accepted the parameters stay bitwise as they were, exceptions included. ``.grad`` is left as it
    was.

    ``meaning`` is what the optimizer makes of the model's outputs, a likelihood or a loss; where it
    goes by a name, a loss that contradicts it is told.

    Numbers that belong to the whole step (``whole``) stand in every group and must agree; ``lr`` is
    each group's own. ``_closure_form`` says how the closure is read: see :class:`ClosureForm`;
    ``_searches``, whether candidates are measured by its loss.
    """

    last_step: OptimizerReport | None = None
    whole: tuple[str, ...] = ()
    _closure_form: ClassVar[ClosureForm] = ClosureForm.STANDARD
    _searches: ClassVar[bool] = True

    def __init__(
        self,
        parameters: nn.Module | Parameters,
        defaults: dict[str, Any],
        model: nn.Module | None,
        meaning: object = None,
    ) -> None:
        if isinstance(parameters, nn.Module):
            model = parameters if model is None else model
            parameters = parameters.parameters()
        self._observed = None if model is None else ObservedModel(model)
        self._warnings, self._meaning = LoopWarnings(), meaning
        super().__init__(parameters, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as in torch.optim.

        Parameters
        ----------
        param_group
            ``{"params": ...}`` and the group's own settings, ``lr`` for example. All groups have
            one dtype, float32 or float64, and one device. Settings of the whole step that are left
            out are those of the other groups at present.

        Raises
        ------
        TypeError, ValueError
            If dtypes or devices differ, a setting is out of range, or a setting of the whole step
            differs from that of the other groups. The group is not added then.
        """
        if self.param_groups:
            known = {name: self._setting(name) for name in self.whole}
            param_group = {**known, **param_group} if isinstance(param_group, dict) else param_group
        super().add_param_group(param_group)
        try:
            flat.check_alike(self._parameters())
            first = self._parameters()[0]
            if flat.real_dtype(first) not in (torch.float32, torch.float64):
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

    def _setting(self, name: str) -> Any:
        values = [group[name] for group in self.param_groups]
        if any(value != values[0] for value in values):
            raise ValueError(f"{name} belongs to the whole step; the groups have {values}")
        return values[0]

    def _set_for_all_groups(self, name: str, value: Any) -> None:
        for group in self.param_groups:
            group[name] = value

    def _per_parameter(self, name: str, parameters: list[Tensor]) -> Tensor:
        """A number of each group, ``lr`` for example: 0-d if the groups agree, else (n,)."""
        dtype, device = flat.real_dtype(parameters[0]), parameters[0].device
        values = [float(group[name]) for group in self.param_groups]
        if len(set(values)) == 1:
            return torch.tensor(values[0], dtype=dtype, device=device)
        value_of = {
            parameter: value
            for group, value in zip(self.param_groups, values, strict=True)
            for parameter in group["params"]
        }
        return torch.cat(
            [
                torch.full((flat.size(p),), value_of[p], dtype=dtype, device=device)
                for p in parameters
            ]
        )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, as in torch.optim, and forget the batches that they came from.

        Parameters
        ----------
        set_to_none
            Whether ``.grad`` becomes None (else zeros).
        """
        super().zero_grad(set_to_none)
        if self._observed is not None:
            self._observed.clear()

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Take one step; ``last_step`` reports it.

        Parameters
        ----------
        closure
            The standard one: zero_grad(), loss, loss.backward(), return loss. It must give the same
            loss for the same parameters. None, where the optimizer allows it: the step starts from
            the present ``.grad``, and no candidate's loss is measured. If the closure raises at a
            candidate, the parameters are as they were; ``torch.linalg.LinAlgError`` there, from a
            matrix that cannot be factored, counts as an infinite loss.

        Returns
        -------
        Any
            The value of the closure's first call, None without a closure.

        Raises
        ------
        NonFiniteError
            At the third step in a row that met NaN or infinity.
        RuntimeError
            In a process group of several ranks.
        """
        began = time.perf_counter()
        _require_one_process()
        sign = -1.0 if "maximize" in self.whole and self._setting("maximize") else 1.0
        objective, returned, silent = None, None, False
        if closure is not None:
            objective = Objective(closure, self._parameters()[0].device, sign, self._closure_form)
            marks = GradientMarks(self._parameters())
            returned = objective.first(self._observed)
            objective.computes = marks.written()
            silent = returned is None and objective.computes
        start = start_of(objective, self._parameters(), sign)
        if not start.parameters:
            self._warnings.no_gradient(self._parameters())
        if self._observed is not None:
            self._warnings.see_batches(self._observed, self._meaning)
        proposal = self._step_or_restore(start)
        if silent and self._searches:
            self._warnings.loss_not_returned()
        seconds = time.perf_counter() - began
        loss = start.loss
        if loss is None and objective is not None and objective.returned is not None:
            loss = sign * as_loss(objective.returned)
        report = replace(
            proposal.report,
            loss=math.nan if loss is None else sign * float(loss),
            gradient_norm=float(torch.linalg.vector_norm(start.gradient, dtype=torch.float64)),
            evaluations=0 if objective is None else objective.evaluations,
            seconds=seconds,
        )
        self._record(report)
        measured = objective is not None and objective.measures
        if not measured and report.status is OptimizerStatus.ACCEPTED:
            self._warnings.see_gradient(report.gradient_norm)
        if self._observed is not None:
            self._observed.clear()
        return returned

    def _step_or_restore(self, start: Start) -> Proposal:
        """Return the proposal of ``_compute_step``, written to the parameters only if accepted."""
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
        self._complete_state()
        counters = self._counters
        count = counters["nonfinite_steps"] + 1 if report.status.nonfinite else 0
        counters["nonfinite_steps"] = count
        if count >= MAX_NONFINITE:
            raise NonFiniteError(
                f"{count} steps in a row met NaN or infinity, the last with {report.status.name}: "
                f"{report.status.value}. The parameters are as they were before the first of them"
            )

    def __getstate__(self) -> dict[str, Any]:
        # torch keeps three attributes; a copy of this optimizer could not step without the others.
        # Hooks, and methods that schedulers patch onto the instance, stay behind, as in torch.
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
