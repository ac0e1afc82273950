"""A torch.optim.Optimizer as a subject."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

from natgrad.testing.cases.objective import Objective
from natgrad.testing.cases.training import Training
from natgrad.testing.check import NotApplicable
from natgrad.testing.strategies import SEEDS
from natgrad.testing.subjects.naming import name_of
from natgrad.testing.subjects.run import Run, Task

FORMS = ("closure", "bare closure", "residuals", "plain")
PLAIN = ("mlp", "convolution", "embedding")
SPECIAL = ("unused", "shapes")
LOSSES = ("categorical", "squared")


@dataclass(frozen=True)
class Optimizer:
    """A function that makes an optimizer of a module's parameters.

    Attributes
    ----------
    name
        The name in reports.
    make
        ``make(model)`` returns the optimizer, with all parameters in one group.
    offers
        Traits: how it steps, what its groups have and what else it claims; see below.
    losses
        The losses that it can train a network by, of ``categorical`` and ``squared``.
    networks
        The kinds of networks, of :mod:`natgrad.testing.networks`, that it can train.
    script
        Code whose last line makes the optimizer of ``parameters``, after lines of imports, for
        counterexamples; "" leaves them out.

    Notes
    -----
    How it steps, one of these at least:

    - ``closure``: ``step(closure)`` with the standard closure, which clears gradients, calls
      ``backward`` and returns the loss;
    - ``bare closure``: with a closure that returns the loss and leaves ``backward`` to the
      optimizer;
    - ``residuals``: with a closure that returns residuals r with their graph, to minimise ½‖r‖²;
    - ``plain``: ``step()`` after ``loss.backward()``.

    What its groups have:

    - ``groups``: there may be several, ``add_param_group`` included, each with its ``lr``;
    - ``maximize``, ``weight decay``: settings ``maximize`` and ``weight_decay``, read at every
      step; the decay pulls the parameters of its group towards zero.

    What else it claims:

    - ``deterministic``: the same steps from the same start, bit for bit;
    - ``proportional``: without a closure, half the ``lr`` is half the first step;
    - ``guarded``: NaN or infinity in loss or gradient leave parameters and state as they were;
    - ``search``: with a closure it tries candidates and compares their losses;
    - ``monotone``: with a closure it never raises the loss;
    - ``minimiser``: with a closure it finds the minimum of a smooth function in any unit, with
      nothing to tune;
    - ``scale invariant``: multiplying the objective by c > 0 changes no step;
    - ``exact curvature``: a convex quadratic is solved in one step;
    - ``natural gradient``: affine changes of coordinates change no step;
    - ``status``: ``last_step.status`` is an enum, ACCEPTED where a step was taken and another
      member where none was;
    - ``objectives``: it minimises any function of parameters, not only losses of networks.
    """

    name: str
    make: Callable[[nn.Module], Any]
    offers: frozenset[str]
    losses: tuple[str, ...] = LOSSES
    networks: tuple[str, ...] = PLAIN + SPECIAL
    script: str = ""

    @classmethod
    def of(cls, make: Any, traits: Iterable[str] = ("closure", "plain", "groups")) -> Optimizer:
        """Make a subject of an optimizer.

        Parameters
        ----------
        make
            A class that is called with parameters, or a function ``make(model)``; a subject is
            returned as it is.
        traits
            Traits besides ``objectives``, which is always offered, and those found: ``maximize``
            and ``weight decay`` in the optimizer's defaults, ``status`` where its class has a
            ``last_step``.
        """
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
        """The ways to step that it offers."""
        return tuple(form for form in FORMS if form in self.offers)

    def begin(self, task: Task) -> Run:
        """A new model and a new optimizer, before their first step.

        Parameters
        ----------
        task
            The model and the loss.

        Raises
        ------
        NotApplicable
            If the task is no sum of squares and the optimizer minimises nothing else.
        """
        if isinstance(task, Objective) and task.kind == "logarithm" and not self.takes_a_loss:
            raise NotApplicable(f"{self.name} minimises sums of squares")
        model = task.model()
        return Run(self, task, model, self.make(model))

    @property
    def takes_a_loss(self) -> bool:
        """Whether it can minimise a loss that is no sum of squares."""
        return self.forms != ("residuals",)


def trainings(
    subject: Optimizer,
    *,
    forms: tuple[str, ...] = FORMS,
    networks: tuple[str, ...] = PLAIN,
    dtype: torch.dtype = torch.float64,
) -> st.SearchStrategy[Training]:
    """Trainings of networks, in those of the forms and networks that a subject offers.

    Parameters
    ----------
    subject
        The optimizer.
    forms
        The ways to step to draw from. Name fewer where a property is about some of them.
    networks
        The kinds of networks to draw from.
    dtype
        The dtype of parameters and data.

    Raises
    ------
    NotApplicable
        If the subject offers none of the forms or none of the networks.
    """
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
