"""Optimizers: NaN and infinity, refused steps, and minima. P15, P16."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from hypothesis import strategies as st
from torch import Tensor

from natgrad.testing.cases.objective import Objective
from natgrad.testing.cases.training import Training
from natgrad.testing.check import Cases, Kind, check
from natgrad.testing.limited import Limited
from natgrad.testing.strategies import objectives
from natgrad.testing.subjects.optimizer import Optimizer, trainings
from natgrad.testing.subjects.run import Run, far

EVALUATIONS = 200  # a step of a bounded search takes fewer
BAD = st.sampled_from([math.nan, math.inf, -math.inf])
SEARCHING: Cases = lambda subject: trainings(  # noqa: E731
    subject, forms=("closure", "bare closure", "residuals")
)


@check(
    "P15",
    Kind.OPTIMIZER,
    "a loss of NaN or infinity leaves the parameters bitwise as they were, and is no accepted step",
    tolerance="none",
    needs=["guarded"],
    training=trainings,
    steps=st.integers(0, 2),
    bad=BAD,
)
def bad_losses_change_nothing(
    subject: Optimizer, training: Training, steps: int, bad: float
) -> None:
    run = subject.begin(training)
    run.path(steps)
    before = run.theta
    run.step_by(lambda: _spoiled(run, bad))
    assert torch.equal(run.theta, before), far(run.theta, before)
    _assert_no_claim(run)


@check(
    "P15b",
    Kind.OPTIMIZER,
    "after it the path goes on as if it had not been",
    tolerance="none",
    needs=["guarded", "deterministic"],
    training=trainings,
    steps=st.integers(0, 2),
    bad=BAD,
)
def bad_losses_teach_nothing(
    subject: Optimizer, training: Training, steps: int, bad: float
) -> None:
    run, undisturbed = subject.begin(training), subject.begin(training)
    run.path(steps)
    undisturbed.path(steps)
    run.step_by(lambda: _spoiled(run, bad))
    for theta, expected in zip(run.path(2), undisturbed.path(2), strict=True):
        assert torch.equal(theta, expected), far(theta, expected)


@check(
    "P15c",
    Kind.OPTIMIZER,
    "an objective that is NaN everywhere ends the step within 200 evaluations, where it began",
    tolerance="none",
    found=[
        "torch.optim.LBFGS, strong_wolfe: x is NaN",
        "torchmin.Minimizer: no end of trust-ncg, x is NaN of l-bfgs",
    ],
    needs=["search", "objectives"],
    cost=5,
    objective=objectives(("nan",)),
)
def a_nan_objective_ends_where_it_began(subject: Optimizer, objective: Objective) -> None:
    run = subject.begin(objective)
    with Limited():
        run.step_by(_counted(run.closure))
    assert torch.equal(run.theta, objective.start), far(run.theta, objective.start)
    _assert_no_claim(run)


@check(
    "P15d",
    Kind.OPTIMIZER,
    "the edge of a domain is not crossed: log x, NaN below 0, has fallen where a step from 1 ends, "
    "and is finite",
    tolerance="none",
    found=[
        "torch.optim.LBFGS, strong_wolfe: IndexError, list index out of range",
        "torchmin.Minimizer: the same of l-bfgs",
    ],
    needs=["search", "objectives"],
    cost=5,
    objective=objectives(("logarithm",), max_digits=6),
)
def the_edge_of_the_domain_is_not_crossed(subject: Optimizer, objective: Objective) -> None:
    run = subject.begin(objective)
    for _ in range(3):
        with Limited():
            run.step_by(_counted(run.closure))
        value = float(objective.value(run.theta))
        assert -math.inf < value <= 0, f"log x = {value} at x = {run.theta.tolist()}"
    assert float(run.theta) < 1, "nothing moved"


@check(
    "P15e",
    Kind.OPTIMIZER,
    "a loss that rises with every evaluation moves nothing, within 200 of them",
    tolerance="none",
    found=["PyTorch-LBFGS: parameters change though the line search fails (issue 9)"],
    needs=["monotone"],
    training=SEARCHING,
    steps=st.integers(0, 2),
)
def refused_steps_leave_no_trace(subject: Optimizer, training: Training, steps: int) -> None:
    run, calls = subject.begin(training), 0
    run.path(steps)

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        assert calls <= EVALUATIONS, f"no end after {EVALUATIONS} evaluations"
        return run.closure() + (calls - 1) * rise

    # The loss is not negative: a rise above its value exceeds any decrease.
    before, rise = run.theta, 1 + 10 * run.value()
    run.step_by(closure)
    if calls > 1:  # a single evaluation compares nothing
        assert torch.equal(run.theta, before), far(run.theta, before)
        _assert_no_claim(run)


@check(
    "P15f",
    Kind.OPTIMIZER,
    "with a closure the loss never rises",
    tolerance="8 eps of the loss",
    needs=["monotone"],
    training=SEARCHING,
)
def the_loss_never_rises(subject: Optimizer, training: Training) -> None:
    run = subject.begin(training)
    losses = [run.value()]
    for _ in range(5):
        run.step()
        losses.append(run.value())
    rises = [after - before for before, after in pairwise(losses)]
    allowed = 8 * torch.finfo(torch.float64).eps * losses[0]
    assert max(rises) <= allowed, f"the losses are {losses}"


@check(
    "P16",
    Kind.OPTIMIZER,
    "where the gradient is exactly zero nothing moves",
    tolerance="none",
    training=trainings,
)
def stationary_points_are_kept(subject: Optimizer, training: Training) -> None:
    run = subject.begin(training.times(0.0))
    run.undecayed()
    before = run.theta
    with Limited():
        run.step_by(_counted(run.closure))
    assert torch.equal(run.theta, before), far(run.theta, before)


@check(
    "P16b",
    Kind.OPTIMIZER,
    "from a minimum no step leads away, and there is an end to it",
    tolerance="none",
    found=["torchmin.Minimizer, cg: 0 / 0 in every iteration, x is NaN after 600"],
    needs=["objectives"],
    cost=5,
    objective=objectives(("rosenbrock", "quadratic"), max_digits=12, at_minimum=True),
)
def minima_are_kept(subject: Optimizer, objective: Objective) -> None:
    run = subject.begin(objective)
    run.undecayed()
    for _ in range(2):
        with Limited():
            run.step_by(_counted(run.closure))
        assert torch.equal(run.theta, objective.start), far(run.theta, objective.start)


def _spoiled(run: Run, bad: float) -> Tensor:
    """Run the closure of the loss times ``bad``: it and its gradients are not finite."""
    return run.closure_of(
        lambda: run.task.loss(run.model) * bad, lambda: run.task.residuals(run.model) * bad
    )


def _counted(closure: Callable[[], Tensor]) -> Callable[[], Tensor]:
    calls = 0

    def counted() -> Tensor:
        nonlocal calls
        calls += 1
        assert calls <= EVALUATIONS, f"no end after {EVALUATIONS} evaluations"
        return closure()

    return counted


def _assert_no_claim(run: Run) -> None:
    assert run.status not in ("ACCEPTED", "CONVERGED"), f"the status is {run.status}"
