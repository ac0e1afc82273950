"""Anyone's torch.optim.Optimizer, and what it claims."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from natgrad.testing.cases.objective import Objective
from natgrad.testing.cases.reparametrisation import Regression
from natgrad.testing.cases.training import Training
from natgrad.testing.check import NotApplicable
from natgrad.testing.strategies import SEEDS
from natgrad.testing.subjects.naming import name_of

Task = Training | Objective | Regression
FORMS = ("closure", "bare closure", "residuals", "plain")
PLAIN = ("mlp", "convolution", "embedding")
SPECIAL = ("unused", "shapes")
LOSSES = ("categorical", "squared")


@dataclass(frozen=True)
class Optimizer:
    """``make(model)`` gives the optimizer of a module's parameters, in one group.

    How it steps, by ``offers``, one of these at least:

    - ``closure``: ``step(closure)`` with the standard closure, which clears gradients, calls
      ``backward`` and returns the loss;
    - ``bare closure``: with one that returns the loss and leaves ``backward`` to the optimizer;
    - ``residuals``: with one that returns residuals r with their graph, to minimise ½‖r‖²;
    - ``plain``: ``step()`` after ``loss.backward()``.

    What its groups have:

    - ``groups``: there may be several, ``add_param_group`` included, each with its ``lr``;
    - ``maximize``, ``weight decay``: numbers of that name (``weight_decay``), which are read at
      every step; the decay pulls the parameters of its group towards zero.

    What else it claims:

    - ``deterministic``: the same steps from the same start, bit for bit;
    - ``proportional``: without a closure, half the ``lr`` is half the first step;
    - ``guarded``: NaN or infinity in loss or gradient leave everything as it was;
    - ``search``: with a closure it tries candidates and compares their losses;
    - ``monotone``: with a closure it never raises the loss, whatever it tried;
    - ``minimiser``: with a closure it finds the minimum of a smooth function with nothing to tune,
      whatever the unit of the function is;
    - ``scale invariant``: multiplying the objective by c > 0 changes no step;
    - ``exact curvature``: a convex quadratic is solved in one step;
    - ``natural gradient``: affine changes of coordinates change no step;
    - ``status``: ``last_step.status`` is an enum, ACCEPTED where a step was taken and another
      member where none was.

    ``objectives`` says that any function of parameters will do; else only networks, of these
    ``networks`` (:mod:`natgrad.testing.networks`) with one of these ``losses``. ``script`` makes it
    of ``parameters`` in its last line, after imports, for counterexamples.
    """

    name: str
    make: Callable[[nn.Module], Any]
    offers: frozenset[str]
    losses: tuple[str, ...] = LOSSES
    networks: tuple[str, ...] = PLAIN + SPECIAL
    script: str = ""

    @classmethod
    def of(cls, make: Any, traits: Iterable[str] = ("closure", "plain", "groups")) -> Optimizer:
        """A class of optimizers with a function of parameters, or ``make(model)``. ``maximize`` and
        ``weight decay`` are found in the defaults, ``status`` in a ``last_step``."""
        if isinstance(make, Optimizer):
            return make
        name = name_of(make)
        kind = make
        if isinstance(make, type):
            make = lambda model: kind(model.parameters())  # noqa: E731
        defaults = make(Objective().model()).defaults
        found = {"maximize", "weight decay"} & {key.replace("_", " ") for key in defaults}
        found |= {"status"} if hasattr(kind, "last_step") else set()
        return cls(name, make, frozenset(traits) | found | {"objectives"})

    @property
    def forms(self) -> tuple[str, ...]:
        return tuple(form for form in FORMS if form in self.offers)

    def begin(self, task: Task) -> Run:
        """A new model and a new optimizer, before their first step."""
        if isinstance(task, Objective) and task.kind == "logarithm" and not self.takes_a_loss:
            raise NotApplicable(f"{self.name} minimises sums of squares")
        model = task.model()
        return Run(self, task, model, self.make(model))

    @property
    def takes_a_loss(self) -> bool:
        return self.forms != ("residuals",)


@dataclass
class Run:
    """An optimizer at work: ``step()`` is one training step, of the form that the task says."""

    subject: Optimizer
    task: Task
    model: nn.Module
    optimizer: Any

    @property
    def form(self) -> str:
        return self.task.form or self.subject.forms[0]

    @property
    def theta(self) -> Tensor:
        """All parameters, (n,)."""
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])

    @property
    def status(self) -> str:
        """The name of ``last_step.status``, "" where the optimizer does not tell."""
        status = getattr(getattr(self.optimizer, "last_step", None), "status", None)
        return str(getattr(status, "name", status or ""))

    def loss(self) -> Tensor:
        """What is minimised."""
        if self.form == "residuals":
            return self.task.residuals(self.model).square().sum() / 2
        return self.task.loss(self.model)

    def value(self) -> float:
        return float(self.loss().detach())

    def closure(self) -> Tensor:
        """That of the form; of "plain", the standard one."""
        return self.closure_of(
            lambda: self.task.loss(self.model), lambda: self.task.residuals(self.model)
        )

    def closure_of(self, loss: Callable[[], Tensor], residuals: Callable[[], Tensor]) -> Tensor:
        """What the closure of the form does with this loss, or with these residuals."""
        if self.form == "residuals":
            return residuals()
        self.optimizer.zero_grad()
        value = loss()
        if self.form != "bare closure":
            value.backward()  # type: ignore[no-untyped-call]
        return value

    def step(self) -> Any:
        return self.step_by(self.closure)

    def step_by(self, closure: Callable[[], Tensor]) -> Any:
        """One step in which the gradient, or what the form asks for, comes from this closure."""
        if self.form == "plain":
            closure()
            return self.optimizer.step()
        return self.optimizer.step(closure)

    def path(self, steps: int) -> list[Tensor]:
        found = []
        for _ in range(steps):
            self.step()
            found.append(self.theta)
        return found

    def gradient(self) -> Tensor:
        """(n,) of what is minimised, zero where the loss does not depend on a parameter; ``.grad``
        is left alone."""
        parameters = list(self.model.parameters())
        found = torch.autograd.grad(self.loss(), parameters, materialize_grads=True)
        return torch.cat([g.flatten() for g in found])

    def copied(self, copy: Callable[[Any], Any]) -> Run:
        """The same, at work on what ``copy`` makes of (model, optimizer)."""
        model, optimizer = copy((self.model, self.optimizer))
        return replace(self, model=model, optimizer=optimizer)

    def layers(self) -> list[list[nn.Parameter]]:
        """The parameters of each child of the model; at least two."""
        found = [list(child.parameters()) for child in self.model.children()]
        found = [each for each in found if each]
        return found if len(found) > 1 else [[each] for each in self.model.parameters()]

    def regroup(self, parts: list[list[nn.Parameter]], **settings: list[Any]) -> None:
        """A group for each of the parts, as they would be given to the constructor, each with its
        own of these settings."""
        (group,) = self.optimizer.param_groups
        given = {key: group[key] for key in group if key not in ("params", "param_names")}
        self.optimizer.param_groups.clear()
        for index, part in enumerate(parts):
            own = {name: values[index] for name, values in settings.items()}
            self.optimizer.add_param_group({**given, **own, "params": list(part)})

    def undecayed(self) -> None:
        """No weight decay, where there is any: it moves parameters whatever the loss says."""
        if "weight_decay" in self.optimizer.param_groups[0]:
            self.set("weight_decay", 0.0)

    def set(self, name: str, value: Any) -> None:
        """A number in every group."""
        for group in self.optimizer.param_groups:
            group[name] = value


def trainings(
    subject: Optimizer,
    *,
    forms: tuple[str, ...] = FORMS,
    networks: tuple[str, ...] = PLAIN,
    dtype: torch.dtype = torch.float64,
) -> st.SearchStrategy[Training]:
    """Trainings in those of the forms and of the networks that the subject offers."""
    possible = [form for form in subject.forms if form in forms]
    kinds = [kind for kind in networks if kind in subject.networks]
    if not possible:
        raise NotApplicable(f"{subject.name} does not step by {' or '.join(forms)}")
    if not kinds:
        raise NotApplicable(f"{subject.name} does not train the networks {', '.join(networks)}")

    def build(kind: str, form: str, loss: str, seed: int) -> Training:
        return Training(kind, "squared" if form == "residuals" else loss, form, seed, dtype=dtype)

    losses = st.sampled_from(subject.losses)
    return st.builds(build, st.sampled_from(kinds), st.sampled_from(possible), losses, SEEDS)


def far(found: Tensor, expected: Tensor) -> str:
    """How far parameters are from what they should be, in words."""
    entries = int((found != expected).sum())
    return (
        f"parameters differ in {entries} of {found.numel()} entries, by "
        f"{float((found - expected).norm()):.3g} in all"
    )
