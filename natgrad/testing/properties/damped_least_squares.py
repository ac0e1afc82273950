"""Checks of damped least-squares directions, in parameter or in sample space. N4, N5, N7."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from natgrad.testing import algebra
from natgrad.testing.cases.residuals import Residuals
from natgrad.testing.check import Kind, check
from natgrad.testing.strategies import residuals
from natgrad.testing.subjects.damped_least_squares import DampedLeastSquares

DAMPINGS = st.integers(-6, 2).map(lambda power: 10.0**power)


@check(
    "N4",
    Kind.DAMPED_LEAST_SQUARES,
    "sample space and parameter space agree: Jᵀ(J Jᵀ + λI)⁻¹r = (JᵀJ + λI)⁻¹Jᵀr",
    tolerance="1000 eps (‖J‖² + λ) / λ, the condition of either system",
    problem=residuals(),
    damping=DAMPINGS,
)
def sample_space_is_parameter_space(
    solve: DampedLeastSquares, problem: Residuals, damping: float
) -> None:
    s = solve(problem.J, problem.r, damping)
    algebra.assert_close(s, problem.direction(damping), 2e-13 * (1 + damping) / damping)


@check(
    "N5",
    Kind.DAMPED_LEAST_SQUARES,
    "momentum μ = 0 gives the step without momentum, whatever the previous one was",
    tolerance="1e-12",
    needs=["momentum"],
    problem=residuals(),
    damping=DAMPINGS,
)
def no_momentum_is_no_momentum(
    solve: DampedLeastSquares, problem: Residuals, damping: float
) -> None:
    previous = torch.ones(problem.J.shape[1], dtype=torch.float64)
    s = solve(problem.J, problem.r, damping, previous, 0.0)
    algebra.assert_close(s, solve(problem.J, problem.r, damping), 1e-12)


@check(
    "N5b",
    Kind.DAMPED_LEAST_SQUARES,
    "with momentum s minimises ‖J s − r‖² + λ ‖s − μ s_previous‖²",
    tolerance="1000 eps (‖J‖² + λ) / λ",
    needs=["momentum"],
    problem=residuals(),
    damping=DAMPINGS,
    momentum=st.sampled_from([0.5, 0.9, 0.99]),
)
def momentum_is_a_proximal_term(
    solve: DampedLeastSquares, problem: Residuals, damping: float, momentum: float
) -> None:
    J, n = problem.J, problem.J.shape[1]
    previous = torch.linspace(-1, 1, n, dtype=torch.float64)
    s = solve(J, problem.r, damping, previous, momentum)
    normal = J.mT @ J + damping * torch.eye(n, dtype=torch.float64)
    expected = torch.linalg.solve(normal, J.mT @ problem.r + damping * momentum * previous)
    algebra.assert_close(s, expected, 2e-13 * (1 + damping) / damping)


@check(
    "N5c",
    Kind.DAMPED_LEAST_SQUARES,
    "for μ < 1 the iteration has the fixed point (JᵀJ + λ(1 − μ)I)s = Jᵀr",
    tolerance="1e-8, from a start at it",
    found=["SPRING's amplification 1/√(1 − μ²) has no bound at μ = 1"],
    needs=["momentum"],
    problem=residuals(),
    momentum=st.sampled_from([0.5, 0.9, 0.99]),
)
def momentum_has_a_fixed_point(
    solve: DampedLeastSquares, problem: Residuals, momentum: float
) -> None:
    damping = 0.1
    fixed = problem.direction(damping * (1 - momentum))
    algebra.assert_close(solve(problem.J, problem.r, damping, fixed, momentum), fixed, 1e-8)


@check(
    "N7",
    Kind.DAMPED_LEAST_SQUARES,
    "as λ grows, λ s tends to the gradient Jᵀr",
    tolerance="2 ‖J‖² / λ, the next term of the series, and rounding",
    problem=residuals(),
    log10_damping=st.integers(3, 8),
)
def heavy_damping_is_the_gradient(
    solve: DampedLeastSquares, problem: Residuals, log10_damping: int
) -> None:
    damping = 10.0**log10_damping
    s = solve(problem.J, problem.r, damping)
    algebra.assert_close(damping * s, problem.J.mT @ problem.r, 2 / damping + 1e-9)


@check(
    "N7b",
    Kind.DAMPED_LEAST_SQUARES,
    "as λ falls, s tends to the least-squares solution of least norm",
    tolerance="2 λ / σ_min², the next term, and 1e-6 for rounding at condition 10",
    problem=residuals(max_log10_condition=1),
    log10_damping=st.integers(-8, -4),
)
def light_damping_is_newton(
    solve: DampedLeastSquares, problem: Residuals, log10_damping: int
) -> None:
    damping = 10.0**log10_damping
    s = solve(problem.J, problem.r, damping)
    smallest = min(problem.singular_values)
    exact = torch.linalg.pinv(problem.J) @ problem.r
    algebra.assert_close(s, exact, 2 * damping / smallest**2 + 1e-6)
