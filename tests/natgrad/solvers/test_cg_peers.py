"""Where the conjugate gradients of other libraries fail, beside natgrad's on the same systems.

Every row is a system; every solver is asked the same of it. Claiming convergence means that the
residual in float64 is within the tolerance; a small b or A is solved as well as one of unit scale;
a breakdown is named as one, soon, and leaves no NaN in x. What a peer was measured to fail is a
strict xfail, so that a repaired peer is noticed.
"""

import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from torch import Tensor

from natgrad.solvers import Status, cg
from natgrad.testing.strategies import matrix_with_spectrum, vectors_like

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # it decorates with torch.jit.script
    from linear_operator import settings
    from linear_operator.utils.linear_cg import linear_cg
    from linear_operator.utils.warnings import NumericalWarning


@dataclass
class System:
    """A x = b, by products that are counted and, from the one numbered ``nan_from`` on, NaN."""

    A: Tensor
    b: Tensor
    rtol: float | None = 1e-8  # None: the solver's own default
    max_iterations: int = 200
    nan_from: int | None = None
    products: int = 0

    def multiply(self, v: Tensor) -> Tensor:
        self.products += 1
        broken = self.nan_from is not None and self.products >= self.nan_from
        return torch.full_like(v, torch.nan) if broken else self.A @ v

    def relative_residual(self, x: Tensor) -> float:
        A, x, b = self.A.double(), x.double(), self.b.double()
        return float((b - A @ x).norm() / b.norm())


class Verdict(Enum):
    CONVERGED = auto()
    NOT_CONVERGED = auto()  # an end for want of iterations or accuracy
    BROKEN_DOWN = auto()  # the matrix or its products are named as the cause


@dataclass
class Answer:
    verdict: Verdict
    rtol: float  # what was asked
    x: Tensor | None  # None: an exception instead


def natgrad_cg(system: System) -> Answer:
    rtol: dict[str, Any] = {} if system.rtol is None else {"rtol": system.rtol}
    s = cg(system.multiply, system.b, max_iterations=system.max_iterations, **rtol)
    verdict = Verdict.CONVERGED if s.status is Status.CONVERGED else Verdict.NOT_CONVERGED
    if s.status in (Status.NEGATIVE_CURVATURE, Status.NONFINITE):
        verdict = Verdict.BROKEN_DOWN
    return Answer(verdict, system.rtol or 1e-5, s.x)


def scipy_cg(system: System) -> Answer:
    b = system.b.numpy()
    A = scipy.sparse.linalg.LinearOperator(
        (len(b), len(b)), lambda v: system.multiply(torch.from_numpy(v)).numpy(), dtype=b.dtype
    )
    rtol = {} if system.rtol is None else {"rtol": system.rtol}
    # NumPy's warnings of division by zero are an accident, not the solver's account.
    with np.errstate(all="ignore"):
        x, info = scipy.sparse.linalg.cg(A, b, maxiter=system.max_iterations, **rtol)
    verdict = Verdict.CONVERGED if info == 0 else Verdict.NOT_CONVERGED
    if info < 0:  # a breakdown, in SciPy's other solvers
        verdict = Verdict.BROKEN_DOWN
    return Answer(verdict, system.rtol or 1e-5, torch.from_numpy(x))


def linear_operator_cg(system: System) -> Answer:
    rtol = system.rtol or settings.cg_tolerance.value()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            x = linear_cg(
                system.multiply, system.b, tolerance=system.rtol, max_iter=system.max_iterations
            )
        except RuntimeError as error:
            if "NaNs encountered" not in str(error):
                raise
            return Answer(Verdict.BROKEN_DOWN, rtol, None)
    warned = any(issubclass(warning.category, NumericalWarning) for warning in caught)
    return Answer(Verdict.NOT_CONVERGED if warned else Verdict.CONVERGED, rtol, x)


def sb3_contrib_cg(system: System) -> Answer:
    utils = pytest.importorskip("sb3_contrib.common.utils")
    rtol = system.rtol or 1e-5
    with torch.random.fork_rng(devices=[]):  # it starts from 1e-4 · randn
        torch.manual_seed(0)
        # What it compares is rᵀr, with 1e-10 where nothing is given.
        x = utils.conjugate_gradient_solver(
            system.multiply, system.b, max_iter=system.max_iterations, residual_tol=rtol**2
        )
    # It returns x alone: an end before its last iteration is its claim of convergence.
    early = system.products <= system.max_iterations
    return Answer(Verdict.CONVERGED if early else Verdict.NOT_CONVERGED, rtol, x)


SOLVERS = (natgrad_cg, scipy_cg, linear_operator_cg, sb3_contrib_cg)


def small(A_scale: float = 1.0, b_scale: float = 1.0, shift: float = 0.0, **given) -> System:
    """20 unknowns, eigenvalues from 1 to 10."""
    eigenvalues = torch.linspace(1, 10, 20, dtype=torch.float64) + shift
    A = matrix_with_spectrum(eigenvalues, seed=0) * A_scale
    return System(A, vectors_like(A, seed=1) * b_scale, **given)


def hard(log10_condition: int, dtype: torch.dtype) -> System:
    """200 unknowns, eigenvalues from 1 down to 1 / condition."""
    eigenvalues = torch.logspace(0, -log10_condition, 200, dtype=torch.float64)
    A = matrix_with_spectrum(eigenvalues, seed=0, dtype=dtype)
    rtol = 1e-6 if dtype == torch.float32 else 1e-8
    return System(A, vectors_like(A, seed=1), rtol, max_iterations=5000)


SOLVABLE = {
    "default tolerance": lambda: small(rtol=None),
    "tolerance 1e-8": small,
    "A*1e-6": lambda: small(A_scale=1e-6, rtol=1e-5),
    "A*1e-8": lambda: small(A_scale=1e-8),
    "A*1e-10": lambda: small(A_scale=1e-10),
    "A*1e-12": lambda: small(A_scale=1e-12),
    "b*1e-4": lambda: small(b_scale=1e-4, rtol=1e-5),
    "b*1e-6": lambda: small(b_scale=1e-6, rtol=1e-5),
    "b*1e-8": lambda: small(b_scale=1e-8),
    "b*1e-11": lambda: small(b_scale=1e-11),
    "condition 1e3, float64": lambda: hard(3, torch.float64),
    "condition 1e5, float64": lambda: hard(5, torch.float64),
}
BEYOND_FLOAT32 = {
    "condition 1e3, float32": lambda: hard(3, torch.float32),
    "condition 1e5, float32": lambda: hard(5, torch.float32),
    "condition 1e7, float32": lambda: hard(7, torch.float32),
}
NOT_POSITIVE = {
    "A-5I": lambda: small(shift=-5.0),
    "-A": lambda: small(A_scale=-1.0),
    # bᵀA b = 0: the first step of conjugate gradients divides by zero.
    "diag(1,-1)": lambda: System(
        torch.tensor([1.0, -1.0]).diag().double(), torch.ones(2).double(), max_iterations=20
    ),
}
NAN = {
    "NaN from the 1st product": lambda: small(nan_from=1),
    "NaN from the 4th product": lambda: small(nan_from=4),
}

# What fails, by solver and row. A residual is the true one, relative to b.
MEASURED = {
    scipy_cg: {
        "condition 1e3, float32": "info 0 at residual 3.3e-5, asked 1e-6",
        "condition 1e5, float32": "info 0 at residual 9.0e-3, asked 1e-6",
        "diag(1,-1)": "x is NaN after all 20 iterations, and info 20 says slow convergence",
        "NaN from the 1st product": "x is NaN after all 200 iterations",
        "NaN from the 4th product": "x is NaN after all 200 iterations",
    },
    linear_operator_cg: {
        "tolerance 1e-8": "residual 1.7e-6 after 200 iterations: no step once pᵀAp < 1e-10",
        "A*1e-6": "residual 9.2e-5, asked 1e-5",
        "A*1e-8": "residual 9.7e-4",
        "A*1e-10": "residual 9.1e-3",
        "A*1e-12": "residual 7.3e-2",
        "b*1e-8": "residual 1.7e-6, as for b",
        "b*1e-11": "x = 0 without a warning: ‖b‖ < 1e-10 counts as zero",
        "condition 1e3, float64": "residual 1.0e-5 after 5000 iterations",
        "condition 1e5, float64": "residual 9.9e-6 after 5000 iterations",
        "A-5I": "residual 83 after 200 iterations, warned of as slow convergence",
        "-A": "x = 0 after 200 iterations, warned of as slow convergence",
        "diag(1,-1)": "x = 0 after 20 iterations, warned of as slow convergence",
        "NaN from the 4th product": "x is NaN after all 200 iterations",
    },
    sb3_contrib_cg: {
        "b*1e-4": "ends early at residual 7.8e-3, asked 1e-5: its tolerance is absolute",
        "b*1e-6": "ends early at residual 0.85, asked 1e-5",
        "b*1e-8": "ends early at residual 0.10",
        "b*1e-11": "ends early at residual 104",
        "condition 1e3, float32": "ends early at residual 3.5e-5, asked 1e-6",
        "condition 1e5, float32": "ends early at residual 1.2e-2, asked 1e-6",
        "NaN from the 1st product": "x is NaN after all 200 iterations",
        "NaN from the 4th product": "x is NaN after all 200 iterations",
    },
}


def by_every_solver(rows: dict[str, Callable[[], System]]) -> pytest.MarkDecorator:
    cases = []
    for row, solve in itertools.product(rows, SOLVERS):
        reason = MEASURED.get(solve, {}).get(row)
        xfail = pytest.mark.xfail(strict=True, raises=AssertionError, reason=reason or "")
        name = f"{row}, {solve.__name__}"
        cases.append(pytest.param(rows[row], solve, id=name, marks=xfail if reason else ()))
    return pytest.mark.parametrize(("make", "solve"), cases)


def ask(make: Callable[[], System], solve: Callable[[System], Answer]) -> tuple[System, Answer]:
    system = make()
    answer = solve(system)
    assert system.products <= system.max_iterations + 5  # a few to begin and to verify
    assert answer.x is None or torch.isfinite(answer.x).all()
    return system, answer


def solved(system: System, answer: Answer) -> bool:
    """Said to be, and in truth."""
    converged = answer.verdict is Verdict.CONVERGED
    return converged and system.relative_residual(answer.x) <= answer.rtol  # type: ignore[arg-type]


@by_every_solver(SOLVABLE)
def test_a_positive_definite_system_is_solved_at_every_scale(make, solve):
    assert solved(*ask(make, solve))


@by_every_solver(BEYOND_FLOAT32)
def test_convergence_is_not_claimed_above_the_tolerance(make, solve):
    system, answer = ask(make, solve)
    assert answer.verdict is Verdict.NOT_CONVERGED or solved(system, answer)


@by_every_solver(NOT_POSITIVE)
def test_a_matrix_that_is_not_positive_definite_is_named_unless_solved_all_the_same(make, solve):
    system, answer = ask(make, solve)
    assert answer.verdict is Verdict.BROKEN_DOWN or solved(system, answer)


@by_every_solver(NAN)
def test_a_nan_product_ends_the_solve_at_once_and_leaves_no_nan_in_x(make, solve):
    system, answer = ask(make, solve)
    assert answer.verdict is Verdict.BROKEN_DOWN
    assert system.nan_from is not None
    assert system.products <= system.nan_from + 2
