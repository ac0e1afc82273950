"""Minimisers: claims and results in any unit, at a minimum and without one. M1-M7."""

from __future__ import annotations

import math

import torch

from natgrad.testing.cases.objective import Objective
from natgrad.testing.check import Kind, check
from natgrad.testing.strategies import objectives
from natgrad.testing.subjects.minimiser import Answer, Minimiser

SHORT = 4_000  # operations of torch, for an objective that needs no search
NEAR = 1e-3


@check(
    "M1",
    Kind.MINIMISER,
    "an objective that is NaN everywhere ends the search, where it began, without success",
    tolerance="none",
    found=[
        "torchmin trust-ncg, trust-exact, cg: no end",
        "torchmin bfgs, l-bfgs, newton-exact: x is NaN",
        "scipy.optimize trust-ncg and trust-exact: a ValueError of linalg, no result",
    ],
    cost=12,
    objective=objectives(("nan",)),
)
def nan_is_no_success(minimise: Minimiser, objective: Objective) -> None:
    answer = minimise(objective, limit=SHORT)
    assert torch.equal(answer.x, objective.start), f"x = {answer.x.tolist()}, {answer.message}"
    assert not answer.success, f"claims success: {answer.message}"


@check(
    "M2",
    Kind.MINIMISER,
    "at the minimum of Rosenbrock's function or a quadratic nothing moves, and that is success",
    tolerance="none: the gradient is exactly zero",
    found=[
        "torchmin cg: x is NaN after 600 iterations of 0 / 0",
        "torchmin bfgs, l-bfgs: no success, a non-descent direction was encountered",
        "torchmin trust-exact, dogleg: no success, a bad approximation caused failure",
    ],
    cost=3,
    objective=objectives(("rosenbrock", "quadratic"), at_minimum=True),
)
def a_minimum_is_success(minimise: Minimiser, objective: Objective) -> None:
    answer = minimise(objective, limit=SHORT)
    assert torch.equal(answer.x, objective.start), f"x = {answer.x.tolist()}, {answer.message}"
    assert answer.success is not False, f"no success: {answer.message}"


@check(
    "M3",
    Kind.MINIMISER,
    "success is claimed only near the minimum of Rosenbrock's function, in any unit of it",
    tolerance="1e-3 in x",
    found=[
        "torchmin trust-ncg, trust-exact, newton-cg, cg: success at (−1.18, 1.38), unit 1e-12",
    ],
    needs=["rosenbrock"],
    cost=3,
    objective=objectives(("rosenbrock",), max_digits=12),
)
def success_is_claimed_at_minima_only(minimise: Minimiser, objective: Objective) -> None:
    answer = minimise(objective)
    if answer.success:
        _assert_near(answer, objective)


@check(
    "M3b",
    Kind.MINIMISER,
    "the minimum of Rosenbrock's function is found in any unit of it",
    tolerance="1e-3 in x",
    found=["torchmin trust-krylov on Rosenbrock's function: RuntimeError in any unit"],
    needs=["rosenbrock"],
    cost=3,
    objective=objectives(("rosenbrock",), max_digits=12),
)
def minima_are_found_in_any_unit(minimise: Minimiser, objective: Objective) -> None:
    _assert_near(minimise(objective), objective)


@check(
    "M4",
    Kind.MINIMISER,
    "log x from 1, NaN below 0, ends at a finite value that is no greater than at the start",
    tolerance="none",
    found=[
        "torchmin bfgs, l-bfgs, newton-cg, newton-exact: IndexError, list index out of range",
        "torchmin trust-exact: no end",
        "torchmin cg: x is NaN",
    ],
    cost=12,
    objective=objectives(("logarithm",)),
)
def the_edge_of_the_domain_is_not_crossed(minimise: Minimiser, objective: Objective) -> None:
    answer = minimise(objective)
    value = float(objective.value(answer.x))
    assert -math.inf < value <= 0, f"log x = {value} at x = {answer.x.tolist()}"


@check(
    "M5",
    Kind.MINIMISER,
    "convex quadratics of condition at most 100 are minimised",
    tolerance="1e-3 of the distance",
    cost=2,
    objective=objectives(),
)
def quadratics_are_minimised(minimise: Minimiser, objective: Objective) -> None:
    answer = minimise(objective)
    distance = objective.distance(answer.x)
    assert distance <= NEAR, f"{distance:.2g} of the distance are left: {answer.message}"


@check(
    "M6",
    Kind.MINIMISER,
    "success is claimed on a quadratic in small units only near its minimum",
    tolerance="1e-3 of the distance",
    cost=2,
    objective=objectives(max_digits=12),
)
def success_does_not_depend_on_units(minimise: Minimiser, objective: Objective) -> None:
    answer = minimise(objective)
    distance = objective.distance(answer.x)
    assert not answer.success or distance <= NEAR, (
        f"claims success where {distance:.2g} of the distance are left: {answer.message}"
    )


@check(
    "M7",
    Kind.MINIMISER,
    "the start is left as it was, and the same call gives the same bits and draws nothing",
    tolerance="none",
    cost=3,
    objective=objectives(("quadratic", "rosenbrock")),
)
def nothing_is_written_to(minimise: Minimiser, objective: Objective) -> None:
    start, before = objective.start, torch.get_rng_state()
    kept = start.clone()
    one = minimise.call(objective.value, start)
    assert torch.equal(start, kept), "the start was written to"
    assert torch.equal(torch.get_rng_state(), before), "the global generator was advanced"
    other = minimise.call(objective.value, kept)
    assert torch.equal(torch.as_tensor(one.x), torch.as_tensor(other.x)), "another x"


def _assert_near(answer: Answer, objective: Objective) -> None:
    distance = float((answer.x - objective.minimum).abs().max())
    assert distance <= NEAR, f"x = {answer.x.tolist()}, success {answer.success}, {answer.message}"
