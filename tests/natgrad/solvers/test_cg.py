import itertools
from typing import Any

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from natgrad.curvature import Dense
from natgrad.solvers import Status, cg
from natgrad.testing.strategies import (
    matrix_with_spectrum,
    spd_matrices,
    symmetric_matrices,
    vectors_like,
)

SEEDS = st.integers(0, 2**31 - 1)


def energy_error(A, x, solution):
    error = (x - solution).double()
    return float(error @ (A.double() @ error))


def relative_residual(A, x, b):
    """In float64, from the rounded data: what CONVERGED promises."""
    A, x, b = A.double(), x.double(), b.double()
    return float((b - A @ x).norm() / b.norm())


@given(spd_matrices(dtypes=(torch.float64,)), SEEDS)
def test_agrees_with_a_direct_solve(A, seed):
    b = vectors_like(A, seed=seed)
    s = cg(A, b, rtol=1e-10)
    assert s.status is Status.CONVERGED
    assert torch.allclose(s.x, torch.linalg.solve(A, b), rtol=1e-6, atol=1e-6 * float(s.x.norm()))
    assert torch.equal(s.Ax, A @ s.x)


@given(st.integers(1, 6), st.integers(6, 30), SEEDS)
def test_ends_after_as_many_iterations_as_there_are_distinct_eigenvalues(distinct, n, seed):
    """Theory, line 8: n steps in exact arithmetic, k for k distinct eigenvalues."""
    A = matrix_with_spectrum(1.0 + torch.arange(n).remainder(distinct).double(), seed=seed)
    s = cg(A, vectors_like(A, seed=seed + 1), rtol=1e-9)
    assert s.status is Status.CONVERGED
    assert s.iterations <= distinct


@given(st.integers(1, 12), SEEDS)
def test_n_products_with_a_function_are_enough_and_one_verifies(n, seed):
    """No entry of A is ever seen, let alone its inverse."""
    A = matrix_with_spectrum(1.0 + torch.arange(n).double(), seed=seed)
    b, asked = vectors_like(A, seed=seed + 1), []

    def product(v):
        asked.append(v.shape)
        return A @ v

    s = cg(product, b, rtol=1e-8)
    assert s.status is Status.CONVERGED
    assert torch.allclose(s.x, torch.linalg.solve(A, b), rtol=1e-6, atol=1e-7 * float(s.x.norm()))
    assert asked == [(n,)] * s.products
    assert s.iterations <= n
    assert s.products <= n + 1


@given(spd_matrices(max_size=12, dtypes=(torch.float64,)), SEEDS)
def test_the_error_falls_in_the_norm_of_A_at_every_iteration(A, seed):
    b = vectors_like(A, seed=seed)
    exact = torch.linalg.solve(A, b)
    errors = [
        energy_error(A, cg(A, b, rtol=0.0, max_iterations=k).x, exact) for k in range(len(A) + 1)
    ]
    floor = 1e-14 * errors[0]
    assert all(later <= earlier + floor for earlier, later in itertools.pairwise(errors))


@given(spd_matrices(max_log10_condition=8, max_log10_scale=18), SEEDS, st.integers(0, 4))
def test_converged_is_never_said_above_the_tolerance(A, seed, digits):
    b = vectors_like(A, seed=seed)
    rtol = (100 if A.dtype == torch.float32 else 1e-9) * 10.0**-digits * 1e-4
    s = cg(A, b, rtol=rtol)
    if s.status is Status.CONVERGED:
        assert relative_residual(A, s.x, b) <= rtol
    assert s.products <= s.iterations + 5
    assert np.isclose(s.residual_norm, float((b.double() - s.Ax.double()).norm()), rtol=1e-5)


@given(spd_matrices(max_size=10), SEEDS, st.integers(-60, 60), st.integers(-60, 60))
def test_powers_of_two_in_A_and_b_change_nothing_but_the_scale(A, seed, a_power, b_power):
    if A.dtype == torch.float64:
        a_power, b_power = 8 * a_power, 8 * b_power
    a, c = 2.0 ** (a_power // 2), 2.0 ** (b_power // 2)
    b = vectors_like(A, seed=seed)
    plain, scaled = cg(A, b, rtol=1e-3), cg(A * a, b * c, rtol=1e-3)
    assert plain.status is scaled.status
    assert plain.iterations == scaled.iterations
    assert torch.equal(plain.x * (c / a), scaled.x)
    assert torch.equal(plain.Ax * c, scaled.Ax)


@pytest.mark.parametrize("scale", [1e-200, 1e-20, 1e-12, 1e-8, 1.0, 1e12, 1e20, 1e200])
@pytest.mark.parametrize("which", ["A", "b"])
def test_the_tolerance_is_reached_at_every_scale(which, scale):
    """linear_operator's linear_cg stops at 7e-2 for A · 1e-12 and returns 0 for b · 1e-11."""
    A = torch.diag(torch.linspace(1, 10, 20, dtype=torch.float64))
    b = torch.ones(20, dtype=torch.float64)
    A, b = (A * scale, b) if which == "A" else (A, b * scale)
    s = cg(A, b, rtol=1e-8)
    assert s.status is Status.CONVERGED
    if which == "b":
        assert relative_residual(A, s.x / scale, b / scale) <= 1e-8
    else:
        assert relative_residual(A / scale, s.x * scale, b) <= 1e-8


def ill_conditioned(log10_condition):
    """A float32 system of 200 unknowns."""
    eigenvalues = torch.logspace(0, -log10_condition, 200, dtype=torch.float64)
    A = matrix_with_spectrum(eigenvalues, seed=0, dtype=torch.float32)
    return A, vectors_like(A, seed=1)


def test_a_tolerance_beyond_float32_stagnates_instead_of_claiming():
    """SciPy's cg says info=0 here, at 17 times its tolerance (condition 1e3, rtol 1e-6)."""
    A, b = ill_conditioned(log10_condition=3)
    s = cg(A, b, rtol=1e-6)
    assert s.status in (Status.STAGNATED, Status.MAX_ITERATIONS)
    assert relative_residual(A, s.x, b) < 1e-3


@given(symmetric_matrices(max_size=10), SEEDS)
def test_negative_curvature_is_found_and_its_direction_returned(A, seed):
    s = cg(A, vectors_like(A, seed=seed), rtol=1e-12)
    if s.status is Status.NEGATIVE_CURVATURE:
        assert s.direction is not None
        p = s.direction.double()
        assert float(p @ (A.double() @ p)) <= 1e-6 * float(p @ p)
        assert torch.isfinite(s.x).all()
    else:
        assert s.direction is None
    if len(A) == 1:
        assert s.status is Status.NEGATIVE_CURVATURE


def test_zero_curvature_is_told():
    """SciPy's cg returns NaN here, with no breakdown code."""
    s = cg(torch.diag(torch.tensor([1.0, -1.0])), torch.ones(2))
    assert s.status is Status.NEGATIVE_CURVATURE
    assert torch.equal(s.x, torch.zeros(2))
    assert s.iterations == 1


@pytest.mark.parametrize("check_every", [1, 3, 7])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("fail_at", [1, 2, 5])
def test_a_nonfinite_product_ends_the_solve_with_the_last_finite_iterate(bad, fail_at, check_every):
    A = torch.diag(torch.linspace(1, 100, 30, dtype=torch.float64))
    b = torch.ones(30, dtype=torch.float64)
    calls = 0

    def multiply(v):
        nonlocal calls
        calls += 1
        return A @ v if calls != fail_at else torch.full_like(v, bad)

    s = cg(multiply, b, check_every=check_every)
    assert s.status is Status.NONFINITE
    assert s.products <= fail_at + check_every
    assert s.direction is None
    assert torch.equal(s.x, cg(A, b, max_iterations=fail_at - 1).x)


def test_nonfinite_b_x0_and_preconditioner_end_at_once_and_finite():
    A, b = torch.eye(3), torch.ones(3)
    nan = torch.tensor([1.0, float("nan"), 1.0])
    for s in (
        cg(A, nan),
        cg(A, b, x0=nan),
        cg(A, b, preconditioner=lambda v: v * float("nan")),
    ):
        assert s.status is Status.NONFINITE
        assert torch.equal(s.x, torch.zeros(3))
        assert s.iterations == 0
        assert s.products <= 1


def test_a_preconditioner_that_fails_later_keeps_the_last_finite_iterate():
    calls = 0

    def preconditioner(v):
        nonlocal calls
        calls += 1
        return v if calls < 3 else v * float("nan")

    A = torch.diag(torch.linspace(1, 100, 30))
    s = cg(A, torch.ones(30), preconditioner=preconditioner, check_every=5)
    assert (s.status, s.iterations) == (Status.NONFINITE, 5)
    assert torch.isfinite(s.x).all()
    assert s.x.any()


def test_a_preconditioner_that_is_not_positive_is_told():
    turned = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])  # rᵀz is 0
    for preconditioner in (-torch.eye(2), turned):
        s = cg(torch.eye(2), torch.tensor([1.0, 2.0]), preconditioner=preconditioner)
        assert (s.status, s.iterations, s.products) == (Status.NEGATIVE_CURVATURE, 0, 0)


def test_zero_right_hand_side_costs_no_product():
    s = cg(Dense(torch.eye(3)), torch.zeros(3), x0=torch.ones(3))
    assert s.status is Status.ZERO_RHS
    assert (s.products, s.iterations, s.residual_norm) == (0, 0, 0.0)
    assert torch.equal(s.x, torch.zeros(3))


@given(spd_matrices(dtypes=(torch.float64,)), SEEDS, st.integers(-30, 30))
def test_the_inverse_as_preconditioner_needs_one_iteration_at_any_scale(A, seed, power):
    inverse = torch.linalg.inv(A) * 10.0**power
    s = cg(A, vectors_like(A, seed=seed), preconditioner=inverse, rtol=1e-8)
    assert s.status is Status.CONVERGED
    assert s.iterations == 1


@given(spd_matrices(max_size=10, dtypes=(torch.float64,)), SEEDS)
def test_a_diagonal_preconditioner_is_a_change_of_variables(A, seed):
    """PCG with D² on A is CG on D A D: same iterates in x = D y."""
    generator = torch.Generator().manual_seed(seed)
    d = 0.5 + torch.rand(len(A), generator=generator, dtype=torch.float64)
    b = vectors_like(A, seed=seed)
    for k in range(1, 4):
        left = cg(A, b, preconditioner=lambda v: d * d * v, rtol=0.0, max_iterations=k)
        right = cg(d[:, None] * A * d, d * b, rtol=0.0, max_iterations=k)
        assert torch.allclose(left.x, d * right.x, rtol=1e-7, atol=1e-9 * float(left.x.norm()))


def test_warm_starts():
    A = torch.diag(torch.linspace(1, 50, 40, dtype=torch.float64))
    b = torch.ones(40, dtype=torch.float64)
    cold = cg(A, b, rtol=1e-8)
    at_the_answer = cg(A, b, x0=b / A.diagonal(), rtol=1e-8)
    assert at_the_answer.status is Status.CONVERGED
    assert (at_the_answer.iterations, at_the_answer.products) == (0, 1)
    near = cg(A, b, x0=cold.x * (1 + 1e-4), rtol=1e-8)
    assert near.status is Status.CONVERGED
    assert near.iterations < cold.iterations
    scaled = cg(A * 1e-30, b, x0=cold.x * 1e30 * (1 + 1e-4), rtol=1e-8)
    assert scaled.iterations == near.iterations
    assert torch.equal(cg(A, b, x0=torch.zeros_like(b)).x, cg(A, b).x)


@pytest.mark.parametrize("power", [-100, 100])
def test_a_warm_start_is_free_of_scale(power):
    a, c = 2.0**power, 2.0**-20
    A, b = torch.diag(torch.linspace(1, 50, 40)), torch.ones(40)
    x0 = b / A.diagonal() * torch.linspace(0.5, 2, 40)
    plain, scaled = cg(A, b, x0=x0), cg(a * A, c * b, x0=x0 * (c / a))
    assert plain.status is scaled.status is Status.CONVERGED
    assert torch.equal(plain.x * (c / a), scaled.x)
    assert torch.equal(plain.Ax * c, scaled.Ax)


def test_a_restart_takes_as_many_iterations_as_it_needs():
    """Two a round, and a product that verifies, the first time a tenth too short."""
    A, b = torch.tensor([1.0, 2.0], dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    products = 0

    def multiply(v):
        nonlocal products
        products += 1
        return A * v * {3: 0.9, 6: 1 / 1.1}.get(products, 1.0)

    s = cg(multiply, b, rtol=1e-6)
    assert (s.status, s.iterations, s.products) == (Status.CONVERGED, 4, 6)


@pytest.mark.parametrize("check_every", [2, 4, 7, 100])
def test_checking_rarely_changes_nothing_but_idle_products(check_every):
    A = torch.diag(torch.linspace(1, 50, 40, dtype=torch.float64))
    b = torch.ones(40, dtype=torch.float64)
    often, rarely = cg(A, b, rtol=1e-8), cg(A, b, rtol=1e-8, check_every=check_every)
    assert rarely.status is Status.CONVERGED
    assert torch.equal(often.x, rarely.x)
    assert rarely.iterations == -(-often.iterations // check_every) * check_every


def test_limits_of_iterations():
    A, b = torch.diag(torch.tensor([1.0, 2.0, 4.0])), torch.ones(3)
    none = cg(A, b, max_iterations=0)
    assert (none.status, none.products) == (Status.MAX_ITERATIONS, 0)
    assert torch.equal(none.x, torch.zeros(3))
    slow = torch.logspace(0, 4, 30, dtype=torch.float64)
    by_default = cg(slow.diag(), torch.ones_like(slow), rtol=0.0)
    assert (by_default.status, by_default.iterations) == (Status.MAX_ITERATIONS, 300)
    exactly = cg(A, b, max_iterations=3)  # lineax calls this one max_steps_reached
    assert exactly.status is Status.CONVERGED
    short = cg(A, b, max_iterations=2)
    assert (short.status, short.iterations, short.products) == (Status.MAX_ITERATIONS, 2, 2)
    assert torch.allclose(short.Ax, A @ short.x)


def test_atol_ends_earlier_and_is_absolute():
    A, b = torch.diag(torch.linspace(1, 50, 40)), torch.ones(40)
    s = cg(A, b, rtol=0.0, atol=0.5)
    assert s.status is Status.CONVERGED
    assert s.residual_norm <= 0.5
    assert cg(A, 1e-6 * b, rtol=0.0, atol=0.5).iterations <= 1


def test_every_kind_of_matrix_gives_the_answer_in_the_kind_of_b():
    matrix = np.diag([1.0, 2.0, 4.0])
    expected = [1.0, 0.5, 0.25]
    tensor = torch.from_numpy(matrix)
    numpy_kinds: list[Any] = [
        matrix,
        scipy.sparse.csr_array(matrix),
        scipy.sparse.linalg.aslinearoperator(matrix),
        lambda v: matrix @ v,
    ]
    torch_kinds: list[Any] = [tensor, Dense(tensor), lambda v: tensor @ v]
    for A in numpy_kinds + torch_kinds[:2]:
        s = cg(A, np.ones(3))
        assert isinstance(s.x, np.ndarray)
        assert isinstance(s.Ax, np.ndarray)
        assert s.x.dtype == np.float64
        assert np.allclose(s.x, expected)
    for A in torch_kinds + numpy_kinds[:3]:
        found = cg(A, torch.ones(3, dtype=torch.float64))
        assert isinstance(found.x, torch.Tensor)
        assert np.allclose(found.x, expected)


def test_a_preconditioner_is_handed_the_kind_of_b():
    kinds = []

    def preconditioner(v):
        kinds.append(type(v))
        return v

    cg(np.eye(2), np.ones(2), preconditioner=preconditioner)
    assert set(kinds) == {np.ndarray}
    kinds.clear()
    cg(torch.eye(2), torch.ones(2), preconditioner=preconditioner)
    assert set(kinds) == {torch.Tensor}


def test_norms_are_summed_in_float64():
    b = torch.linspace(0.1, 1, 1000)
    s = cg(torch.eye(1000), b, max_iterations=0)
    assert s.residual_norm == pytest.approx(float(b.double().norm()), rel=1e-13)


def test_b_is_left_alone():
    b = torch.ones(3)
    cg(torch.eye(3) * 2, b)
    array = np.ones(3)
    cg(np.eye(3) * 2, array)
    assert torch.equal(b, torch.ones(3))
    assert (array == 1).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: cg(torch.eye(3), torch.ones(2)), ValueError, "b has 2 elements"),
        (lambda: cg(torch.eye(2).double(), torch.ones(2)), ValueError, "convert one"),
        (lambda: cg(torch.eye(2), torch.ones(2, 1, 1)), ValueError, r"vector \(n,\)"),
        (lambda: cg(torch.eye(2), torch.ones(2, 0)), ValueError, "no columns"),
        (lambda: cg(torch.eye(2), torch.ones(2).half()), ValueError, "half precision"),
        (lambda: cg(torch.eye(2), [1.0, 1.0]), TypeError, "NumPy array"),  # type: ignore[type-var]
        (lambda: cg("A", torch.ones(2)), TypeError, "A must support"),  # type: ignore[arg-type]
        (lambda: cg(lambda v: v[:1], torch.ones(2)), ValueError, "expected the same shape"),
        (lambda: cg(torch.eye(2), torch.ones(2), rtol=-1.0), ValueError, "rtol .* got -1.0"),
        (lambda: cg(torch.eye(2), torch.ones(2), atol=np.nan), ValueError, "atol .* got nan"),
        (lambda: cg(torch.eye(2), torch.ones(2), atol=-1.0), ValueError, "atol .* got -1.0"),
        (lambda: cg(torch.eye(2), torch.ones(2), max_iterations=-1), ValueError, "got -1"),
        (lambda: cg(torch.eye(2), torch.ones(2), check_every=0), ValueError, "got 0"),
        (lambda: cg(torch.eye(2), torch.ones(2), x0=torch.ones(3)), ValueError, "like b"),
        (lambda: cg(torch.eye(2), torch.ones(2), x0=torch.ones(2).double()), ValueError, "like b"),
        (lambda: cg(torch.eye(2), torch.ones(2), x0=[1.0, 1.0]), TypeError, "^x0 must be"),  # type: ignore[type-var]
    ],
)
def test_errors_say_what_came_and_what_was_wanted(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(("scale", "b_scale"), [(1e30, 1e-30), (1e25, 1e-19), (1e-30, 1e30)])
def test_a_solution_outside_the_range_of_the_dtype_is_never_called_converged(scale, b_scale):
    s = cg(torch.eye(3) * scale, torch.tensor([1.0, 0.3, 0.7]) * b_scale)
    assert s.status is Status.NONFINITE


@pytest.mark.parametrize("largest", [2.0**127, 3e38])
def test_a_right_hand_side_at_the_edge_of_the_range_is_solved(largest):
    s = cg(torch.eye(3), torch.full((3,), largest))
    assert s.status is Status.CONVERGED
    assert torch.equal(s.x, torch.full((3,), largest))


@pytest.mark.parametrize("check_every", [1, 2, 5])
def test_exact_convergence_survives_idle_iterations(check_every):
    assert cg(torch.eye(3), torch.ones(3), check_every=check_every).status is Status.CONVERGED


def test_an_exact_start_beyond_certification_stagnates_and_accuses_nothing():
    s = cg(2 * torch.eye(3), torch.ones(3), x0=torch.full((3,), 0.5), rtol=1e-7)
    assert (s.status, s.iterations, s.products) == (Status.STAGNATED, 0, 1)
    assert torch.equal(s.x, torch.full((3,), 0.5))


@pytest.mark.parametrize(("share", "status"), [(2.1, "CONVERGED"), (1.9, "STAGNATED")])
def test_the_margin_of_rounding_is_eps_of_the_two_terms(share, status):
    """b − A x = 0 exactly: what is left is eps (‖A‖ ‖x‖ + ‖b‖) = 2 eps ‖b‖."""
    rtol = share * torch.finfo(torch.float32).eps
    for scale in (2.0, 2.0**-40):
        x = torch.ones(3) / scale
        for x0 in (None, x):
            s = cg(scale * torch.eye(3), torch.ones(3), x0=x0, rtol=rtol)
            assert s.status is Status[status]
            assert torch.equal(s.x, x)


@pytest.mark.parametrize("scale", [1.0, 2.0**-20, 2.0**20])
@pytest.mark.parametrize("preconditioner", [None, 2 * torch.eye(400, dtype=torch.float64)])
def test_it_ends_at_the_first_iterate_that_passes(scale, preconditioner):
    A = torch.linspace(1, 50, 400, dtype=torch.float64).diag()
    b = torch.ones(400, dtype=torch.float64)
    norms = [cg(A, b, rtol=0.0, max_iterations=k).residual_norm for k in range(12)]
    for k in (3, 6, 10):
        between = (norms[k] * norms[k - 1]) ** 0.5
        given = {"preconditioner": preconditioner}
        relative = cg(A, scale * b, rtol=between / 20, **given)
        absolute = cg(A, scale * b, rtol=0.0, atol=between * scale, **given)
        assert relative.status is absolute.status is Status.CONVERGED
        assert relative.iterations == absolute.iterations == k


def test_numpy_vectors_of_any_layout_are_taken():
    A = np.diag([1.0, 2.0, 4.0])
    expected = cg(A, np.array([3.0, 2.0, 1.0])).x
    read_only = np.array([3.0, 2.0, 1.0])
    read_only.flags.writeable = False
    for b in (np.array([1.0, 2.0, 3.0])[::-1], np.array([3.0, 2.0, 1.0], ">f8"), read_only):
        assert np.array_equal(cg(A, b).x, expected)

    class Foreign:
        def __matmul__(self, vector):
            assert isinstance(vector, np.ndarray)
            return A @ vector

    assert np.array_equal(cg(Foreign(), np.array([3.0, 2.0, 1.0])).x, expected)
    single = cg(lambda v: (A @ v).astype(np.float32), np.array([3.0, 2.0, 1.0])).x
    assert single.dtype == np.float64
    assert np.allclose(single, expected, rtol=1e-6)
    with pytest.raises(TypeError, match="complex"):
        cg(A.astype(complex), np.ones(3))


def test_an_empty_system_is_solved():
    s = cg(torch.zeros(0, 0), torch.zeros(0))
    assert s.status is Status.ZERO_RHS
    assert s.x.shape == (0,)
