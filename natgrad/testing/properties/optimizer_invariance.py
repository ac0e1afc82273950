"""Optimizers: invariances of a step, and its descent. P7, P13, P14, P18, N1."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from natgrad.testing.cases.objective import Objective
from natgrad.testing.cases.reparametrisation import Regression, Reparametrised
from natgrad.testing.cases.training import Training
from natgrad.testing.check import Kind, check
from natgrad.testing.limited import Limited
from natgrad.testing.strategies import objectives
from natgrad.testing.subjects.optimizer import Optimizer, trainings
from natgrad.testing.subjects.run import Run, far

ROUNDING = (
    "1e-6 of the way of three steps, and 1000 times what a start 1e-12 aside makes of it: sums in "
    "another order round differently, and long searches magnify that"
)
MANY = 400_000  # operations of torch, for a whole minimisation


@check(
    "P7",
    Kind.OPTIMIZER,
    "maximising −f is minimising f, bit for bit",
    tolerance="none: a sign is exact",
    needs=["maximize", "deterministic"],
    training=trainings,
)
def maximising_the_negative_is_minimising(subject: Optimizer, training: Training) -> None:
    run, other = subject.begin(training), subject.begin(training.times(-1.0))
    other.set("maximize", True)
    for theta, expected in zip(other.path(3), run.path(3), strict=True):
        assert torch.equal(theta, expected), far(theta, expected)


@check(
    "P7b",
    Kind.OPTIMIZER,
    "the first step d goes downhill, gᵀd < 0",
    tolerance="none",
    training=trainings,
)
def the_first_step_goes_downhill(subject: Optimizer, training: Training) -> None:
    run = subject.begin(training)
    run.undecayed()
    before, g = run.theta, run.gradient()
    run.step()
    slope = float(g @ (run.theta - before))
    assert slope < 0, f"gᵀd = {slope:.3g}"


@check(
    "P13",
    Kind.OPTIMIZER,
    "the order of the parameters changes no step",
    tolerance=ROUNDING,
    needs=["deterministic"],
    training=trainings,
)
def order_does_not_matter(subject: Optimizer, training: Training) -> None:
    run, other = subject.begin(training), subject.begin(training)
    other.optimizer.param_groups[0]["params"].reverse()
    _assert_same_way(run, other, subject.begin(training))


@check(
    "P13b",
    Kind.OPTIMIZER,
    "nor do groups of the same settings",
    tolerance=ROUNDING,
    needs=["groups", "deterministic"],
    training=trainings,
)
def groups_do_not_matter(subject: Optimizer, training: Training) -> None:
    run, other = subject.begin(training), subject.begin(training)
    other.regroup(other.layers()[::-1])
    _assert_same_way(run, other, subject.begin(training))


@check(
    "P14",
    Kind.OPTIMIZER,
    "a network's loss times a power of four has the same path, bit for bit",
    tolerance="none: powers of four, and their roots, only shift exponents",
    needs=["scale invariant", "deterministic"],
    training=trainings,
    power=st.integers(-20, 20),
)
def the_unit_of_the_loss_does_not_matter(
    subject: Optimizer, training: Training, power: int
) -> None:
    run, other = subject.begin(training), subject.begin(training.times(4.0**power))
    for theta, expected in zip(other.path(3), run.path(3), strict=True):
        assert torch.equal(theta, expected), far(theta, expected)


@check(
    "P14b",
    Kind.OPTIMIZER,
    "Rosenbrock's function times c is minimised, from c = 1 to 1e-12",
    tolerance="1e-3 in x after 100 steps",
    found=[
        "torch.optim.LBFGS, strong_wolfe: x₁ = 0.9755 at c = 1e-6, no step at all at 1e-9",
        "pytorch-minimize: all methods but newton-exact end at once at 1e-12",
    ],
    needs=["minimiser", "objectives"],
    cost=3,
    objective=objectives(("rosenbrock",), max_digits=12),
)
def minima_are_found_in_any_unit(subject: Optimizer, objective: Objective) -> None:
    run = subject.begin(objective)
    before = run.theta
    with Limited(MANY):
        for _ in range(100):
            run.step()
            if torch.equal(run.theta, before):
                break
            before = run.theta
    distance = float((run.theta - objective.minimum).abs().max())
    assert distance <= 1e-3, f"ends at {run.theta.tolist()}, the minimum is at (1, 1)"


@check(
    "P18",
    Kind.OPTIMIZER,
    "a convex quadratic is minimised in one step",
    tolerance="1e-6 of the distance, at condition 100",
    needs=["exact curvature", "objectives"],
    objective=objectives(),
)
def quadratics_take_one_step(subject: Optimizer, objective: Objective) -> None:
    run = subject.begin(objective)
    run.step()
    distance = objective.distance(run.theta)
    assert distance <= 1e-6, f"{distance:.2g} of the distance are left"


@check(
    "P18b",
    Kind.OPTIMIZER,
    "a quadratic of singular curvature leads neither to NaN nor away, and its value goes to zero",
    tolerance="1e-6 of the value after two steps",
    needs=["exact curvature", "objectives"],
    objective=objectives(zero=True),
)
def singular_quadratics_are_minimised(subject: Optimizer, objective: Objective) -> None:
    run = subject.begin(objective)
    start, first = run.theta, run.value()
    run.path(2)
    assert bool(torch.isfinite(run.theta).all()), f"x = {run.theta.tolist()}"
    assert run.value() <= 1e-6 * first, f"the value {first:.3g} became {run.value():.3g}"
    moved = float((run.theta - start).norm())
    # The shortest step to a minimum is the projection of start − x*; damping shortens it.
    allowed = float((start - objective.minimum).norm()) * (1 + 1e-6)
    assert moved <= allowed, f"moved by {moved:.3g}, the minimum is at most {allowed:.3g} away"


@check(
    "N1",
    Kind.OPTIMIZER,
    "θ = T ξ + c changes no step: the path of T ξ + c is that of θ",
    tolerance="1e-8 of the way; T has condition 10, the metric is regular",
    needs=["natural gradient"],
    regression=lambda subject: st.builds(
        Regression,
        st.sampled_from(subject.losses),
        st.sampled_from(subject.forms),
        st.integers(0, 2**20),
    ),
)
def affine_coordinates_do_not_matter(subject: Optimizer, regression: Regression) -> None:
    if regression.form == "residuals":
        regression = regression.of("squared")
    run, other = subject.begin(regression), subject.begin(regression.in_other_coordinates())
    model = other.model
    assert isinstance(model, Reparametrised)
    start = run.theta
    for step in range(1, 4):
        run.step()
        other.step()
        way = float((run.theta - start).norm())
        error = float((model.theta().detach() - run.theta).norm())
        assert error <= 1e-8 * way, f"step {step}: {error / max(way, 1e-300):.2g} of the way apart"


def _assert_same_way(run: Run, other: Run, aside: Run) -> None:
    last, way = run.theta, 0.0
    with torch.no_grad():
        for parameter in aside.model.parameters():
            parameter.mul_(1 + 1e-12)
    for _ in range(3):
        for each in (run, other, aside):
            each.step()
        way += float((run.theta - last).norm())
        last = run.theta
        error, magnified = (float((each.theta - last).norm()) for each in (other, aside))
        assert error <= 1e-6 * way + 1000 * magnified, (
            f"{error:.2g} apart after a way of {way:.2g}; a start 1e-12 aside makes {magnified:.2g}"
        )
