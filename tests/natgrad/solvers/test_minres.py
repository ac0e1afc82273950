import itertools

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from natgrad.solvers import Status, cg, minres
from natgrad.testing.strategies import (
    DTYPES,
    matrix_with_spectrum,
    spd_matrices,
    symmetric_matrices,
    vectors_like,
)

SEEDS = st.integers(0, 2**31 - 1)
ANY = spd_matrices() | symmetric_matrices()
FLOAT64 = (torch.float64,)
NAN = float("nan")


def signed(n, log10_condition, seed, dtype=torch.float64, null=0):
    """Eigenvalues ±1 … ±1/condition, and 0 ``null`` times."""
    eigenvalues = torch.logspace(0, -log10_condition, n, dtype=torch.float64)
    eigenvalues[1::2] *= -1
    return matrix_with_spectrum(
        torch.cat([eigenvalues, eigenvalues.new_zeros(null)]), seed=seed, dtype=dtype
    )


def indefinite(max_log10_condition=6.0, dtypes=FLOAT64, null=0):
    nulls = st.integers(min(null, 1), null)
    return st.builds(
        signed,
        st.integers(2, 20),
        st.floats(0, max_log10_condition),
        SEEDS,
        st.sampled_from(dtypes),
        nulls,
    )


def relative_residual(A, x, b):
    """In float64, from the rounded data: what CONVERGED promises."""
    A, x, b = A.double(), x.double(), b.double()
    return float((b - A @ x).norm() / b.norm())


@given(indefinite(), SEEDS)
def test_indefinite_systems_are_solved(A, seed):
    b = vectors_like(A, seed=seed)
    s = minres(A, b, rtol=1e-8)
    assert s.status is Status.CONVERGED
    assert relative_residual(A, s.x, b) <= 1e-8
    assert torch.equal(s.Ax, A @ s.x) or torch.allclose(s.Ax, A @ s.x, rtol=1e-12, atol=1e-14)
    condition = float(torch.linalg.cond(A))
    error = (s.x - torch.linalg.solve(A, b)).norm() / s.x.norm()
    assert float(error) <= 2e-8 * condition


@given(indefinite(2.0), SEEDS, st.integers(1, 8))
def test_every_iterate_is_that_of_scipy(A, seed, k):
    b = vectors_like(A, seed=seed)
    theirs, _ = scipy.sparse.linalg.minres(A.numpy(), b.numpy(), rtol=1e-300, maxiter=k)
    ours = minres(A, b, rtol=0.0, max_iterations=k)
    expected = relative_residual(A, torch.from_numpy(theirs), b)
    if expected > 1e-8:
        assert relative_residual(A, ours.x, b) == pytest.approx(expected, rel=1e-4)


@settings(max_examples=50)
@given(ANY, SEEDS)
def test_the_residual_falls_at_every_iteration(A, seed):
    b = vectors_like(A, seed=seed)
    solves = [minres(A, b, rtol=0.0, max_iterations=k) for k in range(min(len(A), 12) + 1)]
    norms = [float((b.double() - A.double() @ s.x.double()).norm()) for s in solves]
    size = float(b.double().norm()) + float(A.double().norm()) * float(solves[-1].x.norm())
    floor = 20 * len(A) * torch.finfo(A.dtype).eps * size
    assert all(after <= before + floor for before, after in itertools.pairwise(norms))


@settings(max_examples=50)
@given(spd_matrices(max_log10_condition=2, dtypes=FLOAT64), SEEDS)
def test_it_minimises_the_residual_where_conjugate_gradients_minimise_the_error(A, seed):
    b = vectors_like(A, seed=seed)
    for k in range(1, 5):
        ours = minres(A, b, rtol=0.0, max_iterations=k).x
        theirs = cg(A, b, rtol=0.0, max_iterations=k).x
        assert relative_residual(A, ours, b) <= relative_residual(A, theirs, b) + 1e-13


@given(
    spd_matrices(max_log10_condition=6)
    | symmetric_matrices()
    | indefinite(6.0, DTYPES)
    | indefinite(4.0, DTYPES, null=3),
    SEEDS,
    st.floats(-10, -1),
)
def test_converged_is_never_said_above_the_tolerance(A, seed, digits):
    b = vectors_like(A, seed=seed)
    rtol = 10.0**digits
    s = minres(A, b, rtol=rtol)
    if s.status is Status.CONVERGED:
        assert relative_residual(A, s.x, b) <= rtol
    if s.status is Status.LEAST_SQUARES:
        wide, r = A.double(), b.double() - A.double() @ s.x.double()
        share = 1.1 * torch.finfo(A.dtype).eps ** 0.5
        assert float((wide @ r).norm()) <= share * float(wide.norm() * r.norm())
    assert s.products <= s.iterations + 4 * 3
    assert np.isclose(s.residual_norm, float((b.double() - s.Ax.double()).norm()), rtol=1e-5)


@given(indefinite(3.0, null=4), SEEDS)
def test_a_singular_system_is_solved_where_b_is_in_the_range(A, seed):
    b = A @ vectors_like(A, seed=seed)
    s = minres(A, b, rtol=1e-8)
    assert s.status is Status.CONVERGED
    assert relative_residual(A, s.x, b) <= 1e-8
    assert float(s.x.norm()) <= (1 + 1e-6) * float((torch.linalg.pinv(A, rtol=1e-10) @ b).norm())


@settings(max_examples=50)
@given(indefinite(3.0, null=4), SEEDS)
def test_a_singular_system_gives_least_squares_where_b_is_not_in_the_range(A, seed):
    b = vectors_like(A, seed=seed)
    pseudoinverse = torch.linalg.pinv(A, rtol=1e-10)
    least = float((b - A @ (pseudoinverse @ b)).norm())
    s = minres(A, b, rtol=1e-10)
    assert s.status is Status.LEAST_SQUARES
    # ‖A r‖ <= √eps ‖A‖ ‖r‖, of which the range's part of r is at most the condition's share.
    share = 2.0**-26 * float(torch.linalg.matrix_norm(pseudoinverse, ord=2))
    assert s.residual_norm <= least / (1 - share**2) ** 0.5 * (1 + 1e-12)
    assert float((b - A @ s.x).norm()) == pytest.approx(s.residual_norm, rel=1e-8)


@given(indefinite(1.5, (torch.float32,), null=4), SEEDS)
def test_in_float32_least_squares_is_told_from_convergence_too(A, seed):
    b = vectors_like(A, seed=seed)
    s = minres(A, b, rtol=1e-3)
    vectors = torch.linalg.eigh(A.double())
    null = vectors.eigenvectors[:, vectors.eigenvalues.abs() < 1e-4]
    least = float((null.mT @ b.double()).norm())
    if least > 0.01 * float(b.norm()):
        assert s.status is not Status.CONVERGED
    if s.status is Status.LEAST_SQUARES:
        assert s.residual_norm <= 1.01 * least


@given(ANY | indefinite(6.0, DTYPES), SEEDS)
def test_a_direction_of_nonpositive_curvature_has_it(A, seed):
    s = minres(A, vectors_like(A, seed=seed), rtol=1e-6)
    lowest = float(torch.linalg.eigvalsh(A.double())[0])
    if s.direction is not None:
        d = s.direction.double()
        allowed = 10 * len(A) * torch.finfo(A.dtype).eps * float(A.double().norm())
        assert float(d @ (A.double() @ d)) <= allowed * float(d @ d)
    elif s.status is Status.CONVERGED:
        assert lowest > -1 or s.iterations < len(A)


def test_an_indefinite_matrix_is_solved_past_its_negative_curvature():
    s = minres(torch.diag(torch.tensor([1.0, -1.0])), torch.ones(2))
    assert s.status is Status.CONVERGED
    assert s.direction is not None
    assert torch.equal(s.direction, torch.ones(2))  # of curvature 0, met at once
    assert minres(torch.eye(2), torch.ones(2)).direction is None


@given(ANY, SEEDS, st.integers(-30, 30), st.integers(-30, 30), st.booleans())
def test_powers_of_two_change_nothing_but_the_scale(A, seed, a_power, b_power, wide):
    if A.dtype == torch.float64 and wide:
        a_power, b_power = 8 * a_power, 8 * b_power
    a, c = 2.0**a_power, 2.0**b_power
    b = vectors_like(A, seed=seed)
    plain, scaled = minres(A, b, rtol=1e-3), minres(A * a, b * c, rtol=1e-3)
    assert plain.status is scaled.status
    assert plain.iterations == scaled.iterations
    assert torch.equal(plain.x * (c / a), scaled.x)
    assert torch.equal(plain.Ax * c, scaled.Ax)
