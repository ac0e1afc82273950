"""Solvers of the trust-region subproblem: length, decrease and optimality of a step. T1-T10."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from natgrad.testing.cases.system import Counted, System
from natgrad.testing.check import Kind, check
from natgrad.testing.strategies import DTYPES, SEEDS, systems
from natgrad.testing.subjects.trust_region_solver import TrustRegionSolver, minimum, model

RADII = st.integers(-8, 8).map(lambda power: 2.0 ** (power / 2))
ANY = st.one_of(
    systems(max_size=12, max_log10_condition=2),
    systems(max_size=12, max_log10_condition=2, negative=True),
)
INDEFINITE = systems(max_size=12, max_log10_condition=2, negative=True)
DEFINITE = systems(max_size=12, max_log10_condition=2)
SLACK = 1e-9  # of the model's decrease, and of lengths in float64


@check(
    "T1",
    Kind.TRUST_REGION_SOLVER,
    "‖s‖ <= radius",
    tolerance="16 eps for the rounding of a norm",
    system=st.one_of(
        systems(max_size=12, dtypes=DTYPES), systems(max_size=12, negative=True, dtypes=DTYPES)
    ),
    radius=RADII,
)
def the_step_stays_within_the_radius(
    solve: TrustRegionSolver, system: System, radius: float
) -> None:
    answer, _ = solve.solve(system, radius, rtol=1e-4)
    length = float(answer.x.double().norm())
    assert length <= radius * (1 + 16 * system.eps), f"‖s‖ = {length:.17g}, radius {radius:.17g}"


@check(
    "T1b",
    Kind.TRUST_REGION_SOLVER,
    "‖s‖_P <= radius in the preconditioner's norm, with equality where s is on the boundary",
    tolerance="1e-6",
    found=["Krylov.jl mixed two norms in the length to the boundary (PR 868)"],
    needs=["preconditioner"],
    system=ANY,
    radius=RADII,
    seed=SEEDS,
)
def the_radius_is_measured_by_the_preconditioner(
    solve: TrustRegionSolver, system: System, radius: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    inverse = 3 ** (2 * torch.rand(len(system), generator=generator, dtype=torch.float64) - 1)
    answer, _ = solve.solve(system, radius, preconditioner=inverse.diag())
    length = float((answer.x**2 / inverse).sum().sqrt())
    assert length <= radius * (1 + 1e-6), f"‖s‖_P = {length:.9g}, radius {radius:.9g}"
    inside = answer.solved or _gradient(system, answer.x) <= 1e-6
    assert inside or length >= radius * (1 - 1e-6), f"‖s‖_P = {length:.9g}, radius {radius:.9g}"


@check(
    "T2",
    Kind.TRUST_REGION_SOLVER,
    "the model falls at least as far as at the Cauchy point, its minimiser along −g in the ball",
    tolerance="1e-9 of that decrease",
    system=ANY,
    radius=RADII,
)
def the_model_falls_as_far_as_at_the_cauchy_point(
    solve: TrustRegionSolver, system: System, radius: float
) -> None:
    answer, _ = solve.solve(system, radius)
    g = system.b
    curvature = float(g @ (system.A @ g))
    length = radius / float(g.norm())
    if curvature > 0:
        length = min(length, float(g @ g) / curvature)
    cauchy, found = model(system, -length * g), model(system, answer.x)
    assert found <= cauchy * (1 - SLACK), f"model {found:.9g}, at the Cauchy point {cauchy:.9g}"


@check(
    "T3",
    Kind.TRUST_REGION_SOLVER,
    "the minimiser has (A + μI)s = −g, μ >= 0, A + μI ⪰ 0 and μ(radius − ‖s‖) = 0",
    tolerance="1e-5 (‖g‖ + ‖A‖ ‖s‖), from rtol 1e-8 at condition 100",
    needs=["exact"],
    system=ANY,
    radius=RADII,
)
def the_optimality_conditions_hold(solve: TrustRegionSolver, system: System, radius: float) -> None:
    answer, _ = solve.solve(system, radius)
    s, g = answer.x, system.b
    slope = system.A @ s + g
    multiplier = float(-(s @ slope) / (s @ s))
    size = float(g.norm() + s.norm())  # ‖A‖ = 1
    residual = float((slope + multiplier * s).norm())
    lowest = float(torch.linalg.eigvalsh(system.A)[0])
    assert residual <= 1e-5 * size, f"‖(A + μI)s + g‖ = {residual:.2g}"
    assert multiplier >= -1e-5, f"μ = {multiplier:.3g}"
    assert lowest + multiplier >= -1e-5, (
        f"the least eigenvalue of A + μI is {lowest + multiplier:.3g}"
    )
    gap = multiplier * (radius - float(s.norm()))
    assert abs(gap) <= 1e-5 * size, f"μ(radius − ‖s‖) = {gap:.2g}"


@check(
    "T4",
    Kind.TRUST_REGION_SOLVER,
    "for positive definite A the decrease is at least half of the greatest possible one",
    tolerance="none (Yuan's theorem for the truncated method; an exact one has all of it)",
    system=DEFINITE,
    radius=RADII,
)
def half_of_the_best_decrease_is_reached(
    solve: TrustRegionSolver, system: System, radius: float
) -> None:
    answer, _ = solve.solve(system, radius)
    found, best = model(system, answer.x), minimum(system.A, system.b, radius)
    share = 1 - 1e-7 if "exact" in solve.offers else 0.5
    assert found <= share * best, f"model {found:.9g}, least {best:.9g}"


@check(
    "T5",
    Kind.TRUST_REGION_SOLVER,
    "the length of the step grows with the number of iterations",
    tolerance="1e-9",
    needs=["max_iterations"],
    system=ANY,
    radius=RADII,
    cost=2,
)
def the_path_grows_in_length(solve: TrustRegionSolver, system: System, radius: float) -> None:
    previous = 0.0
    for count in range(min(len(system), 6) + 1):
        answer, _ = solve.solve(system, radius, rtol=1e-8, max_iterations=count)
        length = float(answer.x.norm())
        assert length >= previous * (1 - SLACK), f"‖s‖ = {previous:.9g}, then {length:.9g}"
        previous = length


@check(
    "T6",
    Kind.TRUST_REGION_SOLVER,
    "a larger radius never gives a higher model",
    tolerance="1e-9 of the decrease",
    system=ANY,
    radius=RADII,
    growth=st.sampled_from([1.001, 2.0, 100.0]),
)
def a_larger_radius_is_no_worse(
    solve: TrustRegionSolver, system: System, radius: float, growth: float
) -> None:
    small = model(system, solve.solve(system, radius)[0].x)
    large = model(system, solve.solve(system, growth * radius)[0].x)
    assert large <= small * (1 - SLACK), f"model {small:.9g}, then {large:.9g}"


@check(
    "T7",
    Kind.TRUST_REGION_SOLVER,
    "where A is not positive definite the step ends on the boundary",
    tolerance="1e-6; a negative curvature that g excites",
    system=INDEFINITE,
    radius=RADII,
)
def negative_curvature_leads_to_the_boundary(
    solve: TrustRegionSolver, system: System, radius: float
) -> None:
    answer, _ = solve.solve(system, radius)
    length = float(answer.x.norm())
    assert length >= radius * (1 - 1e-6), f"‖s‖ = {length:.9g}, radius {radius:.9g}"
    assert not answer.solved, "claims a solution inside"


@check(
    "T8",
    Kind.TRUST_REGION_SOLVER,
    "the minimiser is found where g is orthogonal to the lowest eigenvectors (the hard case)",
    tolerance="1e-5 of the decrease",
    needs=["exact"],
    system=systems(min_size=2, max_size=12, max_log10_condition=2, negative=True),
    radius=st.sampled_from([0.5, 3.0, 100.0]),
)
def the_hard_case_is_solved(solve: TrustRegionSolver, system: System, radius: float) -> None:
    values = torch.tensor(system.eigenvalues, dtype=torch.float64)
    others = system.basis[:, values > values.min()]
    g = others @ (others.mT @ system.b)
    if not bool(g.norm() > 1e-3):
        return
    answer = solve(Counted(system.A), g, radius)
    s = answer.x
    found = float(g @ s + s @ (system.A @ s) / 2)
    best = minimum(system.A, g, radius)
    assert found <= best * (1 - 1e-5), f"model {found:.9g}, least {best:.9g}"


@check(
    "T9",
    Kind.TRUST_REGION_SOLVER,
    "g = 0 gives s = 0 for positive definite A",
    tolerance="none",
    system=DEFINITE,
    radius=RADII,
)
def no_gradient_is_no_step(solve: TrustRegionSolver, system: System, radius: float) -> None:
    answer = solve(Counted(system.A), torch.zeros_like(system.b), radius)
    assert not bool(answer.x.any()), f"s = {answer.x}"


@check(
    "T9b",
    Kind.TRUST_REGION_SOLVER,
    "g = 0 gives a step to the boundary along negative curvature where A has any",
    tolerance="1e-5 of the least model",
    needs=["exact"],
    system=INDEFINITE,
    radius=RADII,
)
def a_saddle_is_escaped(solve: TrustRegionSolver, system: System, radius: float) -> None:
    answer = solve(Counted(system.A), torch.zeros_like(system.b), radius)
    found = float(answer.x @ (system.A @ answer.x) / 2)
    best = float(torch.linalg.eigvalsh(system.A)[0]) * radius**2 / 2
    assert found <= best * (1 - 1e-5), f"model {found:.9g}, least {best:.9g}"


@check(
    "T10",
    Kind.TRUST_REGION_SOLVER,
    "a solve for a smaller radius from what is kept is a fresh solve, at no product",
    tolerance="1e-9",
    needs=["path"],
    system=ANY,
    radius=RADII,
    share=st.sampled_from([0.9, 0.5, 0.01]),
)
def a_rejection_costs_no_product(
    solve: TrustRegionSolver, system: System, radius: float, share: float
) -> None:
    assert solve.path is not None
    A = Counted(system.A)
    path = solve.path(A, system.b)
    path.solve(radius)
    taken = A.count
    again = path.solve(share * radius)
    fresh = solve.path(Counted(system.A), system.b).solve(share * radius)
    assert A.count == taken, f"{A.count - taken} products for a smaller radius"
    distance = float((again.x - fresh.x).norm())
    assert distance <= SLACK * share * radius, f"differs from a fresh solve by {distance:.2g}"


def _gradient(system: System, s: torch.Tensor) -> float:
    return float((system.A @ s + system.b).norm() / system.b.norm())
