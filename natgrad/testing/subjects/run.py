"""An optimizer at work on a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from natgrad.testing.cases.objective import Objective
from natgrad.testing.cases.reparametrisation import Regression
from natgrad.testing.cases.training import Training

Task = Training | Objective | Regression


class SteppedInForms(Protocol):
    """A subject that says in which forms it steps, the preferred one first."""

    @property
    def forms(self) -> tuple[str, ...]: ...


@dataclass
class Run:
    """An optimizer at work on a task.

    Attributes
    ----------
    subject
        The optimizer's subject.
    task
        The model, the loss and the form of the closure.
    model
        The model that is trained.
    optimizer
        The optimizer of its parameters.
    """

    subject: SteppedInForms
    task: Task
    model: nn.Module
    optimizer: Any

    @property
    def form(self) -> str:
        """The form of a step: the task's, or the subject's first where the task names none."""
        return self.task.form or self.subject.forms[0]

    @property
    def theta(self) -> Tensor:
        """All parameters (n,), copied."""
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])

    @property
    def status(self) -> str:
        """The name of ``last_step.status``; "" where the optimizer reports none."""
        status = getattr(getattr(self.optimizer, "last_step", None), "status", None)
        return str(getattr(status, "name", status or ""))

    def loss(self) -> Tensor:
        """The function that is minimised, with its graph."""
        if self.form == "residuals":
            return self.task.residuals(self.model).square().sum() / 2
        return self.task.loss(self.model)

    def value(self) -> float:
        """The value of :meth:`loss`."""
        return float(self.loss().detach())

    def closure(self) -> Tensor:
        """The closure of the form; for the form "plain" the standard one."""
        return self.closure_of(
            lambda: self.task.loss(self.model), lambda: self.task.residuals(self.model)
        )

    def closure_of(self, loss: Callable[[], Tensor], residuals: Callable[[], Tensor]) -> Tensor:
        """The closure of the form, for another loss.

        Parameters
        ----------
        loss
            Returns the loss with its graph.
        residuals
            Returns the residuals (m,) with their graph, for the form "residuals".
        """
        if self.form == "residuals":
            return residuals()
        self.optimizer.zero_grad()
        value = loss()
        if self.form != "bare closure":
            value.backward()  # type: ignore[no-untyped-call]
        return value

    def step(self) -> Any:
        """One training step of the form; the optimizer's answer."""
        return self.step_by(self.closure)

    def step_by(self, closure: Callable[[], Tensor]) -> Any:
        """One training step of the form with another closure; the optimizer's answer.

        Parameters
        ----------
        closure
            A closure of the form, such as :meth:`closure_of` makes.
        """
        if self.form == "plain":
            closure()
            return self.optimizer.step()
        return self.optimizer.step(closure)

    def path(self, steps: int) -> list[Tensor]:
        """Take steps; the parameters (n,) after each.

        Parameters
        ----------
        steps
            The number of steps.
        """
        found = []
        for _ in range(steps):
            self.step()
            found.append(self.theta)
        return found

    def gradient(self) -> Tensor:
        """The gradient (n,) of :meth:`loss`, zero for unused parameters; ``.grad`` stays."""
        parameters = list(self.model.parameters())
        found = torch.autograd.grad(self.loss(), parameters, materialize_grads=True)
        return torch.cat([g.flatten() for g in found])

    def copied(self, copy: Callable[[Any], Any]) -> Run:
        """The run of a copied model and optimizer.

        Parameters
        ----------
        copy
            Maps (model, optimizer) to their copies.
        """
        model, optimizer = copy((self.model, self.optimizer))
        return replace(self, model=model, optimizer=optimizer)

    def layers(self) -> list[list[nn.Parameter]]:
        """The parameters of each child of the model, or one by one where there is one child."""
        found = [list(child.parameters()) for child in self.model.children()]
        found = [each for each in found if each]
        return found if len(found) > 1 else [[each] for each in self.model.parameters()]

    def regroup(self, parts: list[list[nn.Parameter]], **settings: list[Any]) -> None:
        """Replace the optimizer's group by several, as the constructor would make them.

        Parameters
        ----------
        parts
            The parameters of each group.
        **settings
            For each setting, its values by group.
        """
        (group,) = self.optimizer.param_groups
        given = {key: group[key] for key in group if key not in ("params", "param_names")}
        self.optimizer.param_groups.clear()
        for index, part in enumerate(parts):
            own = {name: values[index] for name, values in settings.items()}
            self.optimizer.add_param_group({**given, **own, "params": list(part)})

    def undecayed(self) -> None:
        """Switch weight decay off, where there is any: it moves parameters even at a minimum."""
        if "weight_decay" in self.optimizer.param_groups[0]:
            self.set("weight_decay", 0.0)

    def set(self, name: str, value: Any) -> None:
        """Set a setting in every group.

        Parameters
        ----------
        name
            The setting's key.
        value
            Its value.
        """
        for group in self.optimizer.param_groups:
            group[name] = value


def far(found: Tensor, expected: Tensor) -> str:
    """The distance of parameters from the expected ones, in words.

    Parameters
    ----------
    found, expected
        Parameters (n,).
    """
    entries = int((found != expected).sum())
    return (
        f"parameters differ in {entries} of {found.numel()} entries, by "
        f"{float((found - expected).norm()):.3g} in all"
    )
