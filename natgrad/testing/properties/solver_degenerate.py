"""Solvers of A x = b: right-hand sides of zero, NaN and infinity. S9, S10."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st

from natgrad.testing.cases.system import Counted, System
from natgrad.testing.check import Kind, check
from natgrad.testing.strategies import DTYPES, systems
from natgrad.testing.subjects.solver import Solver


@check(
    "S9",
    Kind.SOLVER,
    "b = 0 is solved by x = 0, at no product",
    tolerance="none",
    needs=["krylov"],
    system=systems(max_size=8, dtypes=DTYPES),
)
def zero_is_solved_by_zero(solve: Solver, system: System) -> None:
    A = Counted(system.A)
    answer = solve(A, torch.zeros_like(system.b))
    assert not bool(answer.x.any()), f"x = {answer.x}"
    assert answer.solved, f"not solved: {answer.status}"
    assert not A.count, f"{A.count} products"


@check(
    "S10",
    Kind.SOLVER,
    "products that are NaN from the k-th on end the solve by the next, unsolved, with x finite",
    tolerance="one more product, which verifies",
    found=[
        "scipy.sparse.linalg.cg runs to its last iteration and returns NaN",
        "linear_operator's linear_cg likewise, from the second product on",
    ],
    needs=["krylov"],
    system=systems(min_size=6, max_size=12),
    k=st.integers(1, 5),
)
def nan_ends_the_solve(solve: Solver, system: System, k: int) -> None:
    A = Counted(system.A, nan_from=k)
    solve(A, system.b, rtol=1e-12).assert_ended_by_nan(A)


@check(
    "S10b",
    Kind.SOLVER,
    "NaN or infinity in b is not solved, takes no more than two products and leaves x finite",
    tolerance="none",
    needs=["krylov"],
    system=systems(max_size=8, dtypes=DTYPES),
    bad=st.sampled_from([math.nan, math.inf, -math.inf]),
)
def nan_in_b_is_not_solved(solve: Solver, system: System, bad: float) -> None:
    A, b = Counted(system.A), system.b.clone()
    b[0] = bad
    answer = solve(A, b)
    assert not answer.solved, "claims a solution"
    assert bool(torch.isfinite(answer.x).all()), f"x = {answer.x}"
    assert A.count <= 2, f"{A.count} products"
