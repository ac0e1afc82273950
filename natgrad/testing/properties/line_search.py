"""Line searches: accepted points, refusals and evaluations. L1-L9."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from hypothesis import strategies as st

from natgrad.testing.cases.ray import Ray
from natgrad.testing.check import Kind, NotApplicable, check
from natgrad.testing.strategies import LENGTHS, rays
from natgrad.testing.subjects.line_search import LineSearch

SHORT = (1.0, 0.1, 0.01, 1e-3)
BAD = st.sampled_from([math.nan, math.inf, -math.inf])


@check(
    "L1",
    Kind.LINE_SEARCH,
    "an accepted point, evaluated anew, satisfies Armijo: f(θ′) <= f(θ) + c gᵀ(θ′ − θ)",
    tolerance="16 eps |f|",
    # Steps of nearly twice the distance to the minimum decrease f, but not sufficiently.
    ray=st.one_of(rays(), rays(lengths=(1.9, 1.8), max_log10_condition=0)),
)
def accepted_is_sufficient_decrease(search: LineSearch, ray: Ray) -> None:
    found = search(ray)
    if not found.accepted:
        return
    before, after = float(ray.value(ray.start)), float(ray.value(found.theta))
    promised = search.decrease * float(ray.gradient(ray.start) @ (found.theta - ray.start))
    allowed = before + promised + 4e-15 * abs(before)
    assert after <= allowed, f"f = {after:.12g}, allowed {allowed:.12g}"


@check(
    "L1b",
    Kind.LINE_SEARCH,
    "of a smooth function bounded below along a descent direction, some point is accepted",
    tolerance="step lengths from 1e-3 to 30 times the gradient",
    ray=rays(),
)
def a_descent_direction_is_searched_with_success(search: LineSearch, ray: Ray) -> None:
    found = search(ray)
    assert found.accepted, f"refused after {found.calls} evaluations"
    assert bool(torch.isfinite(found.theta).all()), f"θ = {found.theta}"


@check(
    "L1c",
    Kind.LINE_SEARCH,
    "an accepted point is flatter than the start: φ′(α) >= 0.9 φ′(0)",
    tolerance="1e-9 |φ′(0)|",
    needs=["wolfe"],
    ray=rays(),
)
def accepted_is_flatter(search: LineSearch, ray: Ray) -> None:
    found = search(ray)
    if found.accepted:
        first = float(ray.gradient(ray.start) @ ray.step)
        last = float(ray.gradient(found.theta) @ ray.step)
        assert last >= (0.9 + 1e-9) * first, f"φ′ = {last:.6g}, at the start {first:.6g}"


@check(
    "L2",
    Kind.LINE_SEARCH,
    "a point where f is NaN or infinite is never accepted; one nearer may be",
    tolerance="none",
    found=[
        "torch's _strong_wolfe: IndexError where log leaves its domain",
        "an Armijo loop `while f1 > …` accepts NaN, since every comparison with it is false",
    ],
    ray=rays(lengths=SHORT),
    edge=st.sampled_from([0.9, 0.3, 0.02]),
    bad=BAD,
)
def what_is_not_finite_is_not_accepted(
    search: LineSearch, ray: Ray, edge: float, bad: float
) -> None:
    ray = replace(ray, edge=edge, outside=bad)
    found = search(ray)
    value = float(ray.value(found.theta))
    assert math.isfinite(value), f"f = {value} at the point to go on from"
    # Up to length 0.2, half the way to the edge decreases f, and backtracking reaches it.
    assert found.accepted or ray.length > 0.2, f"refused after {found.calls} evaluations"


@check(
    "L2b",
    Kind.LINE_SEARCH,
    "where f is nowhere finite along the step nothing is accepted",
    tolerance="none",
    ray=rays(lengths=SHORT),
    bad=BAD,
)
def nothing_finite_is_nothing_accepted(search: LineSearch, ray: Ray, bad: float) -> None:
    found = search(replace(ray, edge=1e-300, outside=bad))
    assert not found.accepted, "accepts"
    assert torch.equal(found.theta, ray.start), "goes on from another point than the start"


@check(
    "L3",
    Kind.LINE_SEARCH,
    "a search that refuses goes on from the start, bit for bit, and never writes to it",
    tolerance="none",
    ray=rays(lengths=SHORT),
    outside=st.sampled_from([math.nan, math.inf, 1e300]),
)
def refusal_restores_the_start(search: LineSearch, ray: Ray, outside: float) -> None:
    ray = replace(ray, edge=1e-300, outside=outside)
    before = ray.start.clone()
    found = search(ray)
    assert torch.equal(ray.start, before), "the start was written to"
    if not found.accepted:
        assert torch.equal(found.theta, before), "goes on from another point than the start"


@check(
    "L4",
    Kind.LINE_SEARCH,
    "along a direction of ascent nothing is accepted: refused, or a ValueError",
    tolerance="none",
    ray=rays(),
)
def ascent_is_refused(search: LineSearch, ray: Ray) -> None:
    ray = replace(ray, uphill=True)
    try:
        found = search(ray)
    except ValueError:
        return
    assert not found.accepted, f"accepts f = {float(ray.value(found.theta)):.6g}"
    assert torch.equal(found.theta, ray.start), "goes on from another point than the start"


@check(
    "L5",
    Kind.LINE_SEARCH,
    "the search ends within 100 evaluations, whatever the function",
    tolerance="none",
    found=["NysNewtonCG's Armijo loop has no bound"],
    ray=rays(lengths=(*LENGTHS, 1e3)),
    outside=st.sampled_from([math.nan, math.inf, -1e300, 1e300, 0.0]),
    edge=st.sampled_from([1e-300, 1e-3, math.inf]),
)
def evaluations_are_bounded(search: LineSearch, ray: Ray, outside: float, edge: float) -> None:
    found = search(replace(ray, outside=outside, edge=edge))
    assert found.calls <= 100, f"{found.calls} evaluations"


@check(
    "L6",
    Kind.LINE_SEARCH,
    "an accepted point lies lower than the start",
    tolerance="none",
    ray=rays(),
)
def the_function_only_falls(search: LineSearch, ray: Ray) -> None:
    found = search(ray)
    before, after = float(ray.value(ray.start)), float(ray.value(found.theta))
    assert after < before or not found.accepted, f"f = {before:.17g}, then {after:.17g}"


@check(
    "L7",
    Kind.LINE_SEARCH,
    "f times c > 0, a power of four, gives the same point",
    tolerance="none: powers of four only shift exponents",
    found=["torch's LBFGS on Rosenbrock's function times 1e-9 takes no step at all"],
    ray=rays(),
    power=st.integers(-40, 40),
)
def the_unit_of_the_function_is_nothing(search: LineSearch, ray: Ray, power: int) -> None:
    one, other = search(ray), search(replace(ray, scale=4.0**power))
    assert one.accepted == other.accepted, f"accepted: {one.accepted}, then {other.accepted}"
    assert torch.equal(one.theta, other.theta), (
        f"θ differs by {float((one.theta - other.theta).norm()):.2g}"
    )


@check(
    "L8",
    Kind.LINE_SEARCH,
    "as many evaluations as it says",
    tolerance="none",
    ray=rays(),
    edge=st.sampled_from([0.3, math.inf]),
)
def evaluations_are_told(search: LineSearch, ray: Ray, edge: float) -> None:
    found = search(replace(ray, edge=edge))
    if found.evaluations is None:
        raise NotApplicable(f"{search.name} does not tell its evaluations")
    assert found.evaluations == found.calls, f"says {found.evaluations}, took {found.calls}"


@check(
    "L9",
    Kind.LINE_SEARCH,
    "at an accepted point the constraint is finite and at most its bound",
    tolerance="none",
    needs=["constraint"],
    ray=rays(lengths=SHORT),
    share=st.sampled_from([0.8, 0.3, 0.05]),
    bad=st.sampled_from([math.nan, math.inf, 1e9]),
)
def the_constraint_holds(search: LineSearch, ray: Ray, share: float, bad: float) -> None:
    bound = float(share * ray.step.norm())

    def constraint(theta: torch.Tensor) -> float:
        distance = float((theta - ray.start).norm())
        return distance if distance <= bound else bad

    found = search(ray, constraint=constraint, bound=bound)
    distance = float((found.theta - ray.start).norm())
    assert distance <= bound, f"at a distance of {distance:.6g}, bound {bound:.6g}"
