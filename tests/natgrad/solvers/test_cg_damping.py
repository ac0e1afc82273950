"""(A + λ I) x = b by conjugate gradients: the system of the damped matrix, and A x without λ."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from natgrad.curvature import Dense
from natgrad.solvers import Status, cg
from natgrad.solvers.preconditioners import jacobi
from natgrad.testing.strategies import spd_matrices

EXPONENTS = st.integers(-12, 12)


def right_hand_side(A, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(A), generator=generator, dtype=torch.float64).to(A.dtype)


@given(
    spd_matrices(max_log10_condition=4), st.integers(0, 2**16), EXPONENTS, st.booleans(),
    st.booleans(), st.sampled_from([1, 4]),
)  # fmt: skip
def test_the_answer_is_that_of_the_damped_matrix(A, seed, power, started, preconditioned, every):
    damping, b = float(A.abs().amax()) * 10.0**power, right_hand_side(A, seed)
    identity = torch.eye(len(A), dtype=torch.float64)
    damped = A.double() + damping * identity
    settings = {"rtol": 1e-4, "check_every": every}
    if started:
        # Of the solution's size: the rounding of any other start would be all that is left of b.
        settings["x0"] = (0.1 * b.double() / torch.linalg.matrix_norm(damped, 2)).to(b)
    if preconditioned:
        settings["preconditioner"] = jacobi(damped.diagonal().to(A))
    s = cg(A, b, damping=damping, **settings)
    residual = torch.linalg.vector_norm(b.double() - damped @ s.x.double())
    if s.status is Status.CONVERGED:
        assert residual <= 1e-4 * torch.linalg.vector_norm(b.double())
    else:  # float32 at this condition: the status says so
        assert A.dtype is torch.float32
        assert s.status is Status.STAGNATED


@given(spd_matrices(max_log10_condition=2), st.integers(0, 2**16), st.integers(0, 12))
def test_the_curvature_of_the_solution_does_not_drown_in_the_damping(A, seed, power):
    """b − λ x, the difference, is wrong altogether from λ = ‖A‖ / eps on."""
    damping, b = float(A.abs().amax()) * 10.0**power, right_hand_side(A, seed)
    s = cg(A, b, damping=damping, rtol=1e-3)
    x = s.x.double()
    expected = x @ (A.double() @ x)
    # x and A x carry a rounding for each of the few updates, each of at most their own size, and
    # A p one for every term of its sums; in A's norm against xᵀA x, the condition amplifies them.
    condition = torch.linalg.cond(A.double())
    bound = (s.iterations + len(A)) * torch.finfo(A.dtype).eps * condition
    assert abs(x @ s.Ax.double() - expected) <= bound * expected


@given(
    spd_matrices(max_log10_condition=2, dtypes=(torch.float64,)), st.integers(0, 2**16),
    st.integers(-60, 60), st.integers(-60, 60),
)  # fmt: skip
def test_powers_of_two_change_no_bit(A, seed, a, c):
    b = right_hand_side(A, seed)
    damping = float(A.abs().amax()) / 8
    plain = cg(A, b, damping=damping, rtol=1e-8)
    scaled = cg(2.0**a * A, 2.0**c * b, damping=2.0**a * damping, rtol=1e-8)
    assert torch.equal(scaled.x, 2.0 ** (c - a) * plain.x)
    assert torch.equal(scaled.Ax, 2.0**c * plain.Ax)
    assert (scaled.status, scaled.iterations) == (plain.status, plain.iterations)


def test_products_are_those_of_the_matrix_itself(generator):
    A = torch.randn(20, 20, generator=generator, dtype=torch.float64)
    A, b = A @ A.mT, torch.randn(20, generator=generator, dtype=torch.float64)
    damped, counted = Dense(A).damped(3.0), Dense(A)
    reference, s = cg(damped, b, rtol=1e-12), cg(counted, b, damping=3.0, rtol=1e-12)
    assert counted.products == s.products == reference.products
    condition = float(torch.linalg.cond(A + 3 * torch.eye(20, dtype=torch.float64)))
    size = float(s.x.abs().amax())
    torch.testing.assert_close(s.x, reference.x, rtol=0.0, atol=2e-12 * condition * size)
    torch.testing.assert_close(s.Ax, A @ s.x, rtol=1e-12, atol=1e-12 * float(s.Ax.abs().amax()))


def test_columns_and_kept_iterates_are_without_the_damping(generator):
    A = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    A, B = A @ A.mT, torch.randn(12, 3, generator=generator, dtype=torch.float64)
    whole = cg(A, B, damping=2.0, rtol=1e-10, iterate_growth=1.3)
    torch.testing.assert_close(whole.Ax, A @ whole.x)
    torch.testing.assert_close(whole.x, torch.linalg.solve(A + 2 * torch.eye(12).double(), B))
    for column in whole.columns:
        for iterate in column.iterates:
            torch.testing.assert_close(iterate.xAx, iterate.x @ A @ iterate.x)


@pytest.mark.parametrize("share", [100.0, 1e6])
def test_kept_curvatures_are_without_a_damping_that_exceeds_them(share, generator):
    A = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    A, b = A @ A.mT, torch.randn(12, generator=generator, dtype=torch.float64)
    damping = share * float(torch.linalg.matrix_norm(A, 2))
    s = cg(A, b, damping=damping, rtol=1e-12, iterate_growth=1.3)
    assert len(s.iterates) > 1
    for x, xAx in s.iterates:
        torch.testing.assert_close(xAx, x @ A @ x, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("damping", [2.0, 1e9])
def test_a_start_at_the_answer_has_the_product_of_the_matrix_itself(damping):
    A, x = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64)), torch.ones(2).double()
    s = cg(A, A @ x + damping * x, x0=x, damping=damping)
    assert (s.status, s.iterations, s.products) == (Status.CONVERGED, 0, 1)
    assert torch.equal(s.x, x)
    assert torch.equal(s.Ax, A @ x)
    assert s.residual_norm == 0.0


@pytest.mark.parametrize("limit", [0, 1, 3, 40])
def test_the_residual_told_is_that_of_the_damped_system(limit, generator):
    A = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    A, b = A @ A.mT, torch.randn(12, generator=generator, dtype=torch.float64)
    for damping in (0.0, 5.0):
        s = cg(A, b, damping=damping, x0=0.01 * b, max_iterations=limit, rtol=1e-9)
        residual = b - A @ s.x - damping * s.x
        rounding = 1e-12 * float(b.norm())
        assert s.residual_norm == pytest.approx(float(residual.norm()), rel=1e-9, abs=rounding)
        torch.testing.assert_close(s.Ax, A @ s.x, rtol=1e-9, atol=1e-12)


def test_no_curvature_at_all_leaves_the_damping():
    b = torch.tensor([3.0, -4.0])
    s = cg(torch.zeros_like, b, damping=2.0)
    assert torch.equal(s.x, b / 2)
    assert torch.equal(s.Ax, torch.zeros(2))
    assert s.status is Status.CONVERGED


@pytest.mark.parametrize("damping", [-1.0, float("nan"), float("inf")])
def test_dampings_out_of_range_are_refused(damping):
    with pytest.raises(ValueError, match="damping must be finite and >= 0"):
        cg(torch.eye(2), torch.ones(2), damping=damping)
