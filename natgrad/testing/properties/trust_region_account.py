"""Solvers of the trust-region subproblem: units, NaN and claims. T11-T13."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from natgrad.testing.cases.system import Counted, System
from natgrad.testing.check import Kind, check
from natgrad.testing.properties.trust_region_solver import ANY, RADII
from natgrad.testing.strategies import DTYPES, systems
from natgrad.testing.subjects.trust_region_solver import TrustRegionSolver


@check(
    "T11",
    Kind.TRUST_REGION_SOLVER,
    "for A times c, g times d and the radius times d / c, powers of four, so is s, bit for bit",
    tolerance="none: powers of four only shift exponents",
    found=["SciPy's trust-ncg guards with an absolute gradient of 1e-4 and min(½, √‖g‖)"],
    system=ANY,
    radius=RADII,
    A_power=st.integers(-20, 20),
    g_power=st.integers(-20, 20),
)
def any_unit_gives_the_same_step(
    solve: TrustRegionSolver, system: System, radius: float, A_power: int, g_power: int
) -> None:
    unit = 4.0 ** (g_power - A_power)
    one, _ = solve.solve(system, radius)
    other, _ = solve.solve(system.scaled(4.0**A_power, 4.0**g_power), radius * unit)
    difference = float((other.x - one.x * unit).norm() / (one.x * unit).norm())
    assert torch.equal(other.x, one.x * unit), f"s differs by {difference:.2g} of its norm"


@check(
    "T12",
    Kind.TRUST_REGION_SOLVER,
    "products that are NaN from the k-th on end the solve by the next, unsolved, with s finite",
    tolerance="one product",
    found=["pytorch-minimize's trust-ncg and trust-exact never end on NaN"],
    needs=["krylov"],
    system=systems(min_size=6, max_size=12),
    k=st.integers(1, 4),
)
def nan_ends_the_step(solve: TrustRegionSolver, system: System, k: int) -> None:
    A = Counted(system.A, nan_from=k)
    solve(A, system.b, 1e6, rtol=1e-12).assert_ended_by_nan(A)


@check(
    "T13",
    Kind.TRUST_REGION_SOLVER,
    "a solution inside is claimed only where ‖A s + g‖ <= rtol ‖g‖, and A s is that of s",
    tolerance="4 eps (‖A‖ ‖s‖ + ‖g‖) of float64; 64 eps cond(A) ‖A‖ ‖s‖",
    system=systems(max_size=12, dtypes=DTYPES),
    digits=st.integers(2, 12),
    radius=st.sampled_from([1.0, 1e6]),
)
def claims_inside_hold(
    solve: TrustRegionSolver, system: System, digits: int, radius: float
) -> None:
    answer, _ = solve.solve(system, radius, rtol=10.0**-digits)
    s = answer.x.double()
    if answer.solved:
        residual, rounding = system.relative_residual(-s), system.rounding(s)
        assert residual <= 10.0**-digits * (1 + 1e-6) + rounding, (
            f"claims {10.0**-digits:.0e} at a relative gradient of {residual:.2g}"
        )
    if answer.Ax is not None:
        distance = float((answer.Ax.double() - system.A.double() @ s).norm())
        allowed = 64 * system.eps * system.condition * float(s.norm())
        assert distance <= allowed, f"‖As − A·s‖ = {distance:.2g}, allowed {allowed:.2g}"
