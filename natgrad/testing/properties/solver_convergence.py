"""Solvers of A x = b: rate and path of convergence. S1-S3, S6, S8, S16-S18."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from natgrad.testing import algebra
from natgrad.testing.cases.system import Counted, System
from natgrad.testing.check import Kind, check
from natgrad.testing.strategies import systems
from natgrad.testing.subjects.solver import Solver

ENERGY = ("max_iterations", "least error")
RTOL = 1e-8


@check(
    "S1",
    Kind.SOLVER,
    "a Krylov method ends within k + 1 iterations, k the number of distinct eigenvalues of A",
    tolerance="one iteration for rounding, at condition 100 and rtol 1e-8",
    needs=["krylov"],
    system=systems(max_distinct=6, max_log10_condition=2),
)
def ends_with_the_distinct_eigenvalues(solve: Solver, system: System) -> None:
    answer, A = solve.solve(system, rtol=RTOL)
    assert answer.solved, f"{answer.status or 'not solved'} after {A.count} products"
    iterations = solve.iterations(answer, A)
    assert iterations <= system.distinct + 1, (
        f"{iterations} iterations for {system.distinct} distinct eigenvalues"
    )


@check(
    "S2",
    Kind.SOLVER,
    "each iteration of conjugate gradients lowers the error in A's norm, hence the model "
    "½xᵀA x − bᵀx",
    tolerance="1e-10 of the first error, where rounding takes over",
    needs=ENERGY,
    system=systems(max_size=12, max_log10_condition=2),
    cost=3,
)
def the_error_falls_in_the_norm_of_A(solve: Solver, system: System) -> None:
    exact = torch.linalg.solve(system.A, system.b)
    first = previous = _energy(system, -exact)
    for count in range(1, len(system) + 1):
        answer, _ = solve.solve(system, rtol=0.0, max_iterations=count)
        now = _energy(system, answer.x - exact)
        if previous <= 1e-10 * first:
            return
        assert now < previous, f"iteration {count}: squared error {previous:.3g}, then {now:.3g}"
        previous = now


@check(
    "S2b",
    Kind.SOLVER,
    "each iteration of a least-residual method leaves ‖b − A x‖ no larger",
    tolerance="1e-7 ‖b‖, where rounding takes over",
    needs=["max_iterations", "least residual"],
    system=st.one_of(
        systems(max_size=12, max_log10_condition=2),
        systems(max_size=12, max_log10_condition=2, negative=True),
    ),
    cost=3,
)
def the_residual_falls(solve: Solver, system: System) -> None:
    previous = 1.0
    for count in range(1, len(system) + 1):
        answer, _ = solve.solve(system, rtol=0.0, max_iterations=count)
        now = system.relative_residual(answer.x)
        assert now <= previous + 1e-7, f"iteration {count}: residual {previous:.3g}, then {now:.3g}"
        previous = now


@check(
    "S3",
    Kind.SOLVER,
    "after j iterations x lies in the Krylov space K_j(A, b), and b − A x is orthogonal to it",
    tolerance="1e-8, at condition 100 and j <= 5",
    needs=ENERGY,
    system=systems(min_size=2, max_size=12, max_log10_condition=2),
    j=st.integers(1, 5),
)
def the_residual_is_orthogonal_to_the_krylov_space(solve: Solver, system: System, j: int) -> None:
    basis = _krylov(system.A, system.b, j)
    answer, _ = solve.solve(system, rtol=0.0, max_iterations=basis.shape[1])
    x, r = answer.x, system.b - system.A @ answer.x
    outside = (x - basis @ (basis.mT @ x)).norm() / x.norm()
    assert outside <= 1e-8, f"{outside:.2g} of x lies outside K_{j}"
    overlap = (basis.mT @ r).norm() / system.b.norm()
    assert overlap <= 1e-8, f"bᵀ-relative overlap of the residual with K_{j}: {overlap:.2g}"


@check(
    "S6",
    Kind.SOLVER,
    "solve(Q A Qᵀ, Q b) = Q solve(A, b) for orthogonal Q, permutations among them",
    tolerance="4 rtol cond(A), what two solves to rtol may differ by",
    system=systems(max_size=15),
    seed=st.integers(0, 2**20),
    permute=st.booleans(),
)
def a_rotation_rotates_the_answer(solve: Solver, system: System, seed: int, permute: bool) -> None:
    n, generator = len(system), torch.Generator().manual_seed(seed)
    if permute:
        Q = torch.eye(n, dtype=torch.float64)[torch.randperm(n, generator=generator)]
    else:
        Q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
    turned = Q @ system.A @ Q.mT
    one = solve(Counted(system.A), system.b, rtol=RTOL)
    other = solve(Counted((turned + turned.mT) / 2), Q @ system.b, rtol=RTOL)
    if one.solved and other.solved:  # S4b checks that easy systems are solved
        algebra.assert_close(other.x, Q @ one.x, 4 * RTOL * system.condition)


@check(
    "S8",
    Kind.SOLVER,
    "a start at the solution is returned after no iteration",
    tolerance="rtol 1e-6, far above the rounding of the start",
    needs=["x0"],
    system=systems(),
)
def a_start_at_the_solution_stays(solve: Solver, system: System) -> None:
    exact = torch.linalg.solve(system.A, system.b)
    answer, A = solve.solve(system, rtol=1e-6, x0=exact)
    assert answer.solved, f"not solved: {answer.status}"
    iterations = solve.iterations(answer, A)
    assert iterations <= 0, f"{iterations} iterations from the solution"
    algebra.assert_close(answer.x, exact, 1e-6 * system.condition)


@check(
    "S8b",
    Kind.SOLVER,
    "from any start the error in A's norm only falls, and the solution is found",
    tolerance="rtol cond(A) at the end",
    needs=["x0", *ENERGY],
    system=systems(max_size=12, max_log10_condition=2),
    j=st.integers(1, 4),
    distance=st.sampled_from([1.0, 1e-3, 1e3]),
)
def a_start_is_never_made_worse(solve: Solver, system: System, j: int, distance: float) -> None:
    exact = torch.linalg.solve(system.A, system.b)
    x0 = exact + distance * system.vectors(2)[:, 1]
    kept = x0.clone()
    answer, _ = solve.solve(system, rtol=0.0, x0=x0, max_iterations=j)
    assert torch.equal(x0, kept), "x0 was written to"
    before, after = _energy(system, x0 - exact), _energy(system, answer.x - exact)
    assert after <= before * (1 + 1e-9), f"squared error {before:.3g}, then {after:.3g}"
    answer, _ = solve.solve(system, rtol=RTOL, x0=x0)
    assert answer.solved, f"not solved: {answer.status}"
    algebra.assert_close(answer.x, exact, 4 * RTOL * system.condition)


@check(
    "S16",
    Kind.SOLVER,
    "the columns of a matrix B are solved as each of them alone",
    tolerance="4 rtol cond(A)",
    needs=["columns"],
    system=systems(max_size=12),
    k=st.integers(1, 4),
    scale=st.sampled_from([1.0, 1e-12, 0.0]),
)
def columns_are_the_loop_over_them(solve: Solver, system: System, k: int, scale: float) -> None:
    B = system.vectors(k + 1)
    B[:, -1] *= scale  # one column is smaller than the rest
    whole = solve(Counted(system.A), B, rtol=RTOL)
    assert whole.x.shape == B.shape, f"X is {tuple(whole.x.shape)}, B is {tuple(B.shape)}"
    alone = [solve(Counted(system.A), b.contiguous(), rtol=RTOL) for b in B.mT]
    if not all(answer.solved for answer in alone):
        return  # S4b checks that easy systems are solved
    assert whole.solved, f"each column alone is solved, the whole is not: {whole.status}"
    for column, answer in zip(whole.x.mT, alone, strict=True):
        algebra.assert_close(column, answer.x, 4 * RTOL * system.condition)


@check(
    "S17",
    Kind.SOLVER,
    "float32 and float64 agree to the condition of A times the precision of float32",
    tolerance="2 (rtol + 50 eps) cond(A), eps that of float32: rtol may be missed by a hair",
    system=systems(max_log10_condition=2),
)
def precisions_agree(solve: Solver, system: System) -> None:
    half = system.in_dtype(torch.float32)
    single, _ = solve.solve(half, rtol=1e-4)
    double = torch.linalg.solve(system.A, system.b)
    algebra.assert_close(single.x.double(), double, 2 * (1e-4 + 50 * half.eps) * system.condition)


@check(
    "S18",
    Kind.SOLVER,
    "results are read back from the device at most four times an iteration, and ten besides",
    tolerance="none: calls are counted",
    needs=["krylov", "device"],
    system=systems(min_size=5),
    cost=3,
)
def few_results_are_read_back(solve: Solver, system: System) -> None:
    with _ReadBacks() as read:
        answer, A = solve.solve(system)
    allowed = 4 * max(A.count, answer.iterations or 0) + 10
    assert read.count <= allowed, f"{read.count} read-backs in {A.count} products"


class _ReadBacks(TorchFunctionMode):
    """Count operations that synchronise with a GPU: a tensor's value as a number or a bool."""

    NAMES = ("__bool__", "__float__", "__int__", "item", "tolist", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += getattr(func, "__name__", "") in self.NAMES
        return func(*args, **(kwargs or {}))


def _energy(system: System, error: Tensor) -> float:
    return float(error @ (system.A @ error))


def _krylov(A: Tensor, b: Tensor, size: int) -> Tensor:
    """An orthonormal basis (n, j) of span{b, A b, …}; j < size where the space is exhausted."""
    columns = [b / b.norm()]
    for _ in range(size - 1):
        v = A @ columns[-1]
        length = v.norm()
        for _ in range(2):  # one pass leaves rounding errors, a second removes them
            basis = torch.stack(columns, dim=1)
            v = v - basis @ (basis.mT @ v)
        if v.norm() <= 1e-6 * length:
            break
        columns.append(v / v.norm())
    return torch.stack(columns, dim=1)
