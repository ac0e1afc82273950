"""Solvers of A x = b: claims at every scale and in every breakdown. S4, S5, S11-S15, S19."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from natgrad.testing.cases.system import Counted, System
from natgrad.testing.check import Kind, NotApplicable, check
from natgrad.testing.strategies import DTYPES, systems
from natgrad.testing.subjects.solver import Answer, Solver, as_answer

RTOL = 1e-8
POWERS = st.integers(-20, 20)


@check(
    "S4",
    Kind.SOLVER,
    "a solution is claimed only where ‖b − A x‖ <= rtol ‖b‖, of x as it is returned",
    tolerance="4 eps (‖A‖ ‖x‖ + ‖b‖), eps that of float64 whatever the system's: what computing "
    "the residual leaves open. What cannot be granted need not be claimed",
    found=[
        "scipy.sparse.linalg.cg says 0 at a residual 9,000 times the tolerance, in float32 at "
        "condition 1e5: it looks at the recursive residual",
        "linear_operator's linear_cg takes no step where pᵀA p < 1e-10",
    ],
    system=systems(max_log10_condition=8, dtypes=DTYPES),
    digits=st.integers(2, 14),
)
def claims_hold(solve: Solver, system: System, digits: int) -> None:
    answer, _ = solve.solve(system, rtol=10.0**-digits)
    _assert_claim_holds(answer, system, 10.0**-digits)


@check(
    "S4b",
    Kind.SOLVER,
    "a positive definite system of condition at most 1000 is solved, and is said to be",
    tolerance="rtol 1e-8 in float64",
    found=["linear_operator's linear_cg does not reach 1e-8 at condition 10"],
    system=systems(),
)
def solves_what_is_easy(solve: Solver, system: System) -> None:
    _assert_solved(solve.solve(system, rtol=RTOL)[0], system)


@check(
    "S4c",
    Kind.SOLVER,
    "an indefinite system of condition at most 100 is solved",
    tolerance="rtol 1e-8 in float64",
    needs=["indefinite"],
    system=systems(max_log10_condition=2, negative=True),
)
def solves_indefinite_systems(solve: Solver, system: System) -> None:
    _assert_solved(solve.solve(system, rtol=RTOL)[0], system)


@check(
    "S5",
    Kind.SOLVER,
    "for A times c and b times d, powers of four, x is multiplied by d / c, bit for bit",
    tolerance="none: powers of four only shift exponents",
    found=[
        "sb3-contrib's conjugate_gradient_solver compares rᵀr with 1e-10, whatever b is",
        "linear_operator's linear_cg compares pᵀA p and ‖b‖ with 1e-10",
    ],
    system=systems(),
    A_power=POWERS,
    b_power=POWERS,
)
def powers_of_four_change_nothing(
    solve: Solver, system: System, A_power: int, b_power: int
) -> None:
    one, _ = solve.solve(system)
    other, _ = solve.solve(system.scaled(4.0**A_power, 4.0**b_power))
    expected = one.x * 4.0 ** (b_power - A_power)
    difference = float((other.x - expected).norm() / expected.norm())
    assert torch.equal(other.x, expected), f"x differs by {difference:.2g} of its norm"
    assert one.solved == other.solved, f"{one.status!r} becomes {other.status!r}"


@check(
    "S5b",
    Kind.SOLVER,
    "a system is solved at any unit of A and b",
    tolerance="rtol 1e-8 in float64, for units of 1e-30 to 1e30",
    found=["sb3-contrib's conjugate_gradient_solver: relative residual 2.4 for b of size 1e-6"],
    system=systems(max_log10_condition=2),
    A_digits=st.integers(-30, 30),
    b_digits=st.integers(-30, 30),
)
def any_unit_will_do(solve: Solver, system: System, A_digits: int, b_digits: int) -> None:
    system = system.scaled(10.0**A_digits, 10.0**b_digits)
    _assert_solved(solve.solve(system, rtol=RTOL)[0], system)


@check(
    "S11",
    Kind.SOLVER,
    "as many products as iterations, two more at most, and as many as it says",
    tolerance="two products: for a start and to verify",
    needs=["krylov"],
    system=systems(max_log10_condition=4),
    rtol=st.sampled_from([1e-4, 1e-8]),
)
def products_are_few_and_counted(solve: Solver, system: System, rtol: float) -> None:
    answer, A = solve.solve(system, rtol=rtol)
    if answer.iterations is None:
        raise NotApplicable(f"{solve.name} does not tell its iterations")
    # An unsolved end may follow claims that verification refused, at one product each.
    allowed = answer.iterations + 2 + (0 if answer.solved else 3)
    assert A.count <= allowed, f"{A.count} products in {answer.iterations} iterations"
    if answer.products is not None:
        assert answer.products == A.count, f"says {answer.products} products, took {A.count}"


@check(
    "S12",
    Kind.SOLVER,
    "a matrix that is not positive definite is no excuse for a false claim, NaN or an endless loop",
    tolerance="none on the claim; 20 n + 20 products",
    found=[
        "scipy.sparse.linalg.cg on diag(1, −1): x is NaN",
        "linear_operator's linear_cg: relative residual 465, called slow convergence",
    ],
    needs=["krylov"],
    system=systems(max_size=12, max_log10_condition=2, negative=True),
)
def indefinite_matrices_are_not_claimed(solve: Solver, system: System) -> None:
    _assert_ends_without_a_false_claim(solve, system)


@check(
    "S12b",
    Kind.SOLVER,
    "a direction reported has pᵀA p <= 0, and conjugate gradients that end unsolved report one",
    tolerance="eps ‖p‖ ‖A p‖",
    needs=["direction"],
    system=systems(max_size=12, max_log10_condition=2, negative=True),
)
def negative_curvature_is_shown(solve: Solver, system: System) -> None:
    answer, _ = solve.solve(system)
    if answer.solved:
        return
    p = answer.direction
    assert p is not None, f"unsolved, {answer.status}, and no direction is shown"
    Ap = system.A @ p
    curvature, rounding = float(p @ Ap), 4 * system.eps * float(p.norm() * Ap.norm())
    assert curvature <= rounding, f"pᵀA p = {curvature:.3g}"


@check(
    "S13",
    Kind.SOLVER,
    "a singular positive semidefinite system whose b lies in the range of A is solved",
    tolerance="rtol 1e-8, at condition 100 on the range",
    needs=["krylov"],
    system=systems(min_size=2, max_size=12, max_log10_condition=2, zero=True),
)
def singular_consistent_systems_are_solved(solve: Solver, system: System) -> None:
    nonzero = [column for column, value in enumerate(system.eigenvalues) if value]
    if not nonzero:
        return
    basis = system.basis[:, nonzero]
    b = basis @ (basis.mT @ system.b)
    answer = solve(Counted(system.A), b, rtol=RTOL)
    residual = float((b - system.A @ answer.x).norm() / b.norm())
    assert answer.solved, f"not solved: {answer.status}, residual {residual:.2g}"
    assert residual <= RTOL * (1 + 1e-6), f"residual {residual:.2g}"


@check(
    "S13b",
    Kind.SOLVER,
    "a singular system whose b lies outside the range of A is never claimed, and ends",
    tolerance="none on the claim; 20 n + 20 products",
    needs=["krylov"],
    system=systems(min_size=2, max_size=12, max_log10_condition=2, zero=True),
)
def singular_inconsistent_systems_are_not_claimed(solve: Solver, system: System) -> None:
    _assert_ends_without_a_false_claim(solve, system)


@check(
    "S14",
    Kind.SOLVER,
    "the product A x that comes with x is that of x",
    tolerance="64 eps cond(A) ‖A‖ ‖x‖: the recurrence's drift",
    system=systems(dtypes=DTYPES),
    limit=st.one_of(st.none(), st.integers(1, 5)),
)
def the_product_returned_is_that_of_x(solve: Solver, system: System, limit: int | None) -> None:
    bounded = "max_iterations" in solve.offers and limit is not None
    answer, _ = solve.solve(system, rtol=1e-4, **({"max_iterations": limit} if bounded else {}))
    if answer.Ax is None:
        raise NotApplicable(f"{solve.name} does not return A x")
    x = answer.x.double()
    distance = float((answer.Ax.double() - system.A.double() @ x).norm())
    allowed = 64 * system.eps * system.condition * float(x.norm())
    assert distance <= allowed, f"‖Ax − A·x‖ = {distance:.2g}, allowed {allowed:.2g}"


@check(
    "S15",
    Kind.SOLVER,
    "max_iterations bounds the iterations, and what is cut short is not claimed",
    tolerance="three products besides",
    needs=["max_iterations", "krylov"],
    system=systems(min_size=4),
    limit=st.integers(0, 3),
)
def iterations_are_bounded(solve: Solver, system: System, limit: int) -> None:
    answer, A = solve.solve(system, rtol=1e-10, max_iterations=limit)
    _assert_claim_holds(answer, system, 1e-10)
    assert A.count <= limit + 3, f"{A.count} products, max_iterations={limit}"
    if answer.iterations is not None:
        assert answer.iterations <= limit, f"{answer.iterations} iterations, allowed {limit}"
    if not limit and not answer.solved:
        assert not bool(answer.x.any()), "x moved without an iteration"


@check(
    "S19",
    Kind.SOLVER,
    "A and b are left as they were, nothing is drawn from the global generator, and the same call "
    "gives the same bits",
    tolerance="none",
    found=["sb3-contrib's conjugate_gradient_solver starts from 1e-4 times a random vector"],
    system=systems(dtypes=DTYPES),
)
def a_solve_leaves_no_trace(solve: Solver, system: System) -> None:
    A, b, drawn = system.A.clone(), system.b.clone(), torch.get_rng_state()
    one = as_answer(solve.call(Counted(system.A), system.b, rtol=RTOL))
    assert torch.equal(system.A, A), "A was written to"
    assert torch.equal(system.b, b), "b was written to"
    assert torch.equal(torch.get_rng_state(), drawn), "the global random state was advanced"
    other = as_answer(solve.call(Counted(system.A), system.b, rtol=RTOL))
    assert torch.equal(one.x, other.x), "a second call gives another x"


def _assert_ends_without_a_false_claim(solve: Solver, system: System) -> None:
    answer, A = solve.solve(system)
    _assert_claim_holds(answer, system, RTOL)
    assert bool(torch.isfinite(answer.x).all()), f"x = {answer.x}"
    assert A.count <= 20 * len(system) + 20, f"{A.count} products"


def _assert_claim_holds(answer: Answer, system: System, rtol: float) -> None:
    if answer.solved:
        residual, rounding = system.relative_residual(answer.x), system.rounding(answer.x)
        assert residual <= rtol * (1 + 1e-6) + rounding, (
            f"claims {rtol:.0e} at a relative residual of {residual:.2g}"
        )


def _assert_solved(answer: Answer, system: System) -> None:
    _assert_claim_holds(answer, system, RTOL)
    residual = system.relative_residual(answer.x)
    assert answer.solved, f"not solved: {answer.status}, relative residual {residual:.2g}"
