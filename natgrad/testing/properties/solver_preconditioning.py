"""Solvers of A x = b: preconditioners. S7."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from natgrad.testing import algebra
from natgrad.testing.cases.system import Counted, System
from natgrad.testing.check import Kind, check
from natgrad.testing.properties.solver_convergence import ENERGY
from natgrad.testing.strategies import systems
from natgrad.testing.subjects.solver import Solver


@check(
    "S7",
    Kind.SOLVER,
    "with A⁻¹ as preconditioner one iteration is enough",
    tolerance="none: A⁻¹ to rounding, at condition 1000",
    needs=["preconditioner", "krylov"],
    system=systems(),
)
def the_inverse_as_preconditioner_ends_at_once(solve: Solver, system: System) -> None:
    inverse = torch.linalg.inv(system.A)
    answer, A = solve.solve(system, rtol=1e-6, preconditioner=(inverse + inverse.mT) / 2)
    assert answer.solved, f"not solved: {answer.status}"
    iterations = solve.iterations(answer, A)
    assert iterations <= 1, f"{iterations} iterations"


@check(
    "S7b",
    Kind.SOLVER,
    "a preconditioner times any c > 0 gives the same iterates",
    tolerance="none for powers of four: they only shift exponents",
    needs=["preconditioner", "max_iterations"],
    system=systems(),
    seed=st.integers(0, 2**20),
    power=st.integers(-30, 30),
    j=st.integers(1, 5),
)
def the_scale_of_a_preconditioner_is_nothing(
    solve: Solver, system: System, seed: int, power: int, j: int
) -> None:
    D, j = _positive(len(system), seed), min(j, len(system))
    one, _ = solve.solve(system, rtol=1e-14, preconditioner=D, max_iterations=j)
    other, _ = solve.solve(system, rtol=1e-14, preconditioner=4.0**power * D, max_iterations=j)
    assert torch.equal(one.x, other.x), f"x changes by {(one.x - other.x).abs().max():.2g}"


@check(
    "S7c",
    Kind.SOLVER,
    "preconditioning by D is the change of variables x = √D y: the iterates of √D A √D y = √D b",
    tolerance="1e-7, at condition 100 and up to five iterations",
    needs=["preconditioner", *ENERGY],
    system=systems(max_size=12, max_log10_condition=2),
    seed=st.integers(0, 2**20),
    j=st.integers(1, 5),
)
def a_diagonal_preconditioner_is_a_change_of_variables(
    solve: Solver, system: System, seed: int, j: int
) -> None:
    D, j = _positive(len(system), seed), min(j, len(system))
    root = D.sqrt()
    one, _ = solve.solve(system, rtol=1e-14, preconditioner=D, max_iterations=j)
    other = solve(Counted(root @ system.A @ root), root @ system.b, rtol=1e-14, max_iterations=j)
    algebra.assert_close(one.x, root @ other.x, 1e-7)


def _positive(n: int, seed: int) -> Tensor:
    """A diagonal matrix of entries in [1/3, 3]."""
    generator = torch.Generator().manual_seed(seed)
    return (3 ** (2 * torch.rand(n, generator=generator, dtype=torch.float64) - 1)).diag()
