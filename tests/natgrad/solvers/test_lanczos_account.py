"""What a Krylov solve tells of itself, and where it ends."""

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from natgrad.curvature import Dense
from natgrad.solvers import Status, lanczos, steihaug
from natgrad.testing.strategies import (
    matrix_with_spectrum,
    spd_matrices,
    symmetric_matrices,
    vectors_like,
)

SEEDS = st.integers(0, 2**31 - 1)
RADII = st.floats(-3, 3).map(lambda power: 10.0**power)
ANY = spd_matrices() | symmetric_matrices()
FLOAT64 = spd_matrices(dtypes=(torch.float64,)) | symmetric_matrices(dtypes=(torch.float64,))
NAN, INF = float("nan"), float("inf")


@given(ANY, SEEDS, RADII)
def test_in_any_precision_a_claim_holds_and_the_radius_is_kept(A, seed, radius):
    b = vectors_like(A, seed=seed)
    s = lanczos(A, b, rtol=1e-4).solve(radius=radius)
    x, wide = s.x.double(), A.double()
    eps = torch.finfo(A.dtype).eps
    length = float(np.linalg.norm(x.numpy().astype(np.longdouble)))
    assert length <= radius * (1 + 2 * eps)
    residual = float((b.double() - wide @ x - s.multiplier * x).norm())
    if s.status is Status.CONVERGED:
        assert residual <= 1e-4 * float(b.double().norm())
    elif s.status is Status.BOUNDARY:
        largest = float(torch.linalg.matrix_norm(wide, ord=2))
        assert residual <= 1e-4 * (float(b.double().norm()) + largest * radius)
        assert length >= radius * (1 - 4 * len(b) * eps)
    else:
        assert s.status in (Status.MAX_ITERATIONS, Status.STAGNATED)
    error = float((s.Ax.double() - wide @ x).norm())
    assert error <= 20 * len(b) * eps * float(wide.norm()) * float(x.norm())
    assert s.iterations == s.products <= len(b)


@settings(max_examples=50)
@given(A=FLOAT64, seed=SEEDS, radius=RADII)
def test_without_a_search_it_is_the_minimiser_over_the_krylov_space(
    A, seed, radius, dense_trust_region
):
    """Plain GLTR, cut after k products: at least as good as Steihaug's k iterations."""
    b = vectors_like(A, seed=seed)
    for k in range(1, min(len(A), 4) + 1):
        s = lanczos(A, b, rtol=0.0, max_iterations=k, search=0).solve(radius=radius)
        assert s.products <= k
        columns = [b / b.norm()]
        for _ in range(k - 1):
            columns.append(A @ columns[-1])
        basis, _ = torch.linalg.qr(torch.stack(columns, dim=1))
        best = dense_trust_region(basis.mT @ A @ basis, basis.mT @ b, radius)
        scale = float(b.norm()) * radius + radius**2
        value = float(0.5 * s.x @ (A @ s.x) - b @ s.x)
        if torch.linalg.cond(torch.stack(columns, dim=1)) < 1e6:
            assert abs(value - best.value) <= 1e-8 * scale
        truncated = steihaug(A, -b, radius, rtol=0.0, max_iterations=k).x
        assert value <= float(0.5 * truncated @ (A @ truncated) - b @ truncated) + 1e-12 * scale


def test_without_a_search_curvature_that_b_does_not_see_stays_unseen():
    A, b = torch.diag(torch.tensor([1.0, -1.0])), torch.tensor([1.0, 0.0])
    blind = lanczos(A, b, search=0).solve(radius=5.0)
    assert (blind.status, blind.products) == (Status.CONVERGED, 1)
    assert torch.allclose(blind.x, torch.tensor([1.0, 0.0]))
    seen = lanczos(A, b).solve(radius=5.0)
    assert (seen.status, seen.products) == (Status.BOUNDARY, 2)
    assert seen.multiplier == pytest.approx(1.0)
    assert seen.x.abs().tolist() == pytest.approx([0.5, 24.75**0.5])
    assert lanczos(A, torch.zeros(2), search=0).solve(radius=5.0).status is Status.ZERO_RHS


def test_a_search_spends_what_it_is_given():
    A = torch.linspace(0.01, 1, 100, dtype=torch.float64).diag()
    b = torch.zeros(100, dtype=torch.float64)
    b[50] = 1.0
    for search in (0, 1, 5):
        s = lanczos(A, b, search=search).solve(radius=1e3)
        assert (s.status, s.products) == (Status.CONVERGED, 1 + search)
    assert lanczos(A, b, search=3).solve().products == 1  # there is no radius to search for


def products_of_a_search(A, start, damping, rtol):
    """The k at which the lowest Ritz pair of a random start is accurate, or Kuczyński and
    Woźniakowski's theorem 4.2 leaves a chance of 1e-3 that curvature below −damping is unseen."""
    n, basis = len(A), start[:0].reshape(0, len(A))
    vector = start
    for k in range(1, n + 1):
        for _ in range(2):
            vector = vector - basis.mT @ (basis @ vector)
        basis = torch.cat([basis, (vector / vector.norm())[None]])
        values, vectors = torch.linalg.eigh(basis @ A @ basis.mT)
        image = A @ (basis.mT @ vectors[:, 0])
        vector = image - basis.mT @ (basis @ image)
        largest = values.abs().max()
        epsilon = max(float(values[0]) + damping, 0.0) / (2 * float(largest))
        chance = 1.648 * n**0.5 * math.exp(-(epsilon**0.5) * (2 * k - 1))
        if float(vector.norm()) <= rtol * float(largest) or chance <= 1e-3:
            return k
    return n


@pytest.mark.parametrize("damping", [0.0, 0.03, 0.5, 4.0])
@pytest.mark.parametrize("rtol", [1e-5, 0.1])
@pytest.mark.parametrize("scale", [0.5, 8.0])
def test_a_search_ends_where_its_theorem_lets_it(damping, rtol, scale):
    A = scale * torch.linspace(0.01, 1, 100, dtype=torch.float64).diag()
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(100, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    krylov = lanczos(A, torch.zeros_like(start), rtol=rtol, generator=generator)
    s = krylov.solve(radius=1.0, damping=scale * damping)
    assert s.status is Status.ZERO_RHS
    assert s.products == products_of_a_search(A, start, scale * damping, rtol)


@pytest.mark.parametrize("scale", [1.0, 2.0**-30, 2.0**30])
@pytest.mark.parametrize(("radius", "damping"), [(INF, 0.0), (INF, 0.5), (2.0, 0.5)])
def test_the_residual_norm_is_that_of_the_system_solved(scale, radius, damping):
    A = torch.linspace(1, 50, 40, dtype=torch.float64).diag()
    b = scale * torch.ones(40, dtype=torch.float64)
    s = lanczos(A, b, rtol=1e-2).solve(radius=radius * scale, damping=damping)
    residual = b - A @ s.x - (damping + s.multiplier) * s.x
    assert s.residual_norm == pytest.approx(float(residual.norm()), rel=1e-6)
    assert s.residual_norm > 1e-6 * float(b.norm())


@pytest.mark.parametrize(("scale", "b_scale"), [(1e30, 1e-30), (1e-30, 1e30)])
def test_a_solution_outside_the_range_of_the_dtype_is_told(scale, b_scale):
    s = lanczos(torch.eye(3) * scale, torch.tensor([1.0, 0.3, 0.7]) * b_scale).solve()
    assert s.status is Status.NONFINITE


def test_a_zero_right_hand_side_without_a_radius_or_a_search_costs_no_product():
    A, zero = torch.tensor([1.0, -1.0]).diag(), torch.zeros(2)
    for s in (lanczos(A, zero).solve(), lanczos(A, zero, search=0).solve(radius=1.0)):
        assert (s.status, s.products) == (Status.ZERO_RHS, 0)


def test_a_multiplier_shortens_the_search():
    A = torch.linspace(0.01, 1, 100, dtype=torch.float64).diag()
    b = torch.eye(100, dtype=torch.float64)[50]
    s = lanczos(A, b).solve(radius=1e-4)
    assert (s.status, s.products) == (Status.BOUNDARY, 2)  # b, and one random vector
    assert s.multiplier == pytest.approx(1e4, rel=1e-3)


def test_without_a_radius_negative_curvature_has_no_part_in_x():
    """It is found along b itself, so that nothing of the Krylov space is left."""
    s = lanczos(torch.tensor([1.0, -1.0]).diag(), torch.ones(2)).solve()
    assert (s.status, s.products) == (Status.NEGATIVE_CURVATURE, 1)
    assert not s.x.any()
    assert s.direction is not None
    assert s.direction.abs().tolist() == pytest.approx([0.5**0.5] * 2)


@pytest.mark.parametrize("seed", range(5))
def test_the_random_start_is_not_the_callers_b_of_the_same_seed(seed):
    A = torch.tensor([1.0, 1.0, -1.0]).diag()
    b = torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float()
    b[2] = 0.0
    assert lanczos(A, b).solve(radius=10.0).multiplier == pytest.approx(1.0)
    identity = lanczos(torch.eye(3), vectors_like(torch.eye(3), seed=seed))
    assert identity.solve(radius=0.1).products > 1


def test_the_random_start_is_the_callers_or_always_the_same():
    A, b = torch.linspace(-1, 1, 30).diag(), torch.zeros(30)
    once, again = (lanczos(A, b, rtol=1e-3).solve(radius=1.0).x for _ in range(2))
    assert torch.equal(once, again)
    other = lanczos(A, b, rtol=1e-3, generator=torch.Generator().manual_seed(5)).solve(radius=1.0)
    assert not torch.equal(once, other.x)


@settings(max_examples=50)
@given(
    ANY, SEEDS, RADII, st.integers(-30, 30), st.integers(-30, 30), st.booleans(), st.floats(0, 1)
)
def test_powers_of_two_change_nothing_but_the_scale(
    A, seed, radius, a_power, b_power, wide, damping
):
    if A.dtype == torch.float64 and wide:
        a_power, b_power = 8 * a_power, 8 * b_power
    a, c = 2.0**a_power, 2.0**b_power
    b = vectors_like(A, seed=seed)
    plain, scaled = lanczos(A, b, rtol=1e-3), lanczos(A * a, b * c, rtol=1e-3)
    for size in (radius, INF):
        left = plain.solve(damping=damping, radius=size)
        right = scaled.solve(damping=damping * a, radius=size * (c / a))
        assert left.status is right.status
        assert left.products == right.products
        assert torch.equal(left.x * (c / a), right.x)
        assert torch.equal(left.Ax * c, right.Ax)
        assert left.multiplier * a == right.multiplier


@pytest.mark.parametrize("power", [-300, -200, -150, 150, 200, 300])
@pytest.mark.parametrize("curvature", [1.0, -1.0])
def test_a_radius_far_from_the_scale_of_the_model_is_kept(power, curvature):
    A = torch.diag(torch.tensor([1.0, 2.0, 3.0 * curvature], dtype=torch.float64))
    s = lanczos(A, torch.ones(3, dtype=torch.float64)).solve(radius=10.0**power)
    if power > 0 and curvature > 0:
        assert s.status is Status.CONVERGED
    else:
        assert float((s.x / 10.0**power).norm()) == pytest.approx(1.0, rel=1e-14)


@given(symmetric_matrices(dtypes=(torch.float64,)), SEEDS)
def test_without_a_radius_negative_curvature_is_told_with_a_direction(A, seed):
    s = lanczos(A, vectors_like(A, seed=seed), rtol=1e-12).solve()
    assert s.status is Status.NEGATIVE_CURVATURE
    d = s.direction
    assert d is not None
    assert float(d @ (A @ d)) <= 1e-14 * len(A) * float(d @ d)
    assert torch.isfinite(s.x).all()
    damped = lanczos(A, vectors_like(A, seed=seed), rtol=1e-9).solve(damping=2.0)
    assert (damped.status, damped.direction) == (Status.CONVERGED, None)


def test_limits_of_the_basis(monkeypatch):
    A, b = torch.linspace(1, 50, 40).diag(), torch.ones(40)
    none = lanczos(A, b, max_iterations=0).solve()
    assert (none.status, none.products) == (Status.MAX_ITERATIONS, 0)
    krylov = lanczos(A, b, max_iterations=3)
    for _ in range(2):
        short = krylov.solve()
        assert short.status is Status.MAX_ITERATIONS
        assert torch.allclose(short.Ax, A @ short.x, rtol=1e-4)
    assert (krylov.size, short.products) == (3, 0)
    assert krylov.solve(radius=1e-3).status is Status.BOUNDARY
    assert lanczos(A, b, rtol=1e-9).solve().status in (Status.STAGNATED, Status.MAX_ITERATIONS)
    monkeypatch.setattr(sys.modules["natgrad.solvers.lanczos"], "DEFAULT_LIMIT", 7)
    assert lanczos(A, b).solve().products == 7
    assert lanczos(A, b, max_iterations=8).solve().products == 8


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("fail_at", [1, 2, 5])
def test_a_nonfinite_product_ends_the_solve_with_the_best_of_the_basis(bad, fail_at):
    A = torch.linspace(1, 100, 30, dtype=torch.float64).diag()
    b = torch.ones(30, dtype=torch.float64)
    calls = 0

    def multiply(v):
        nonlocal calls
        calls += 1
        return A @ v if calls < fail_at else torch.full_like(v, bad)

    krylov = lanczos(multiply, b)
    s = krylov.solve()
    assert s.status is Status.NONFINITE
    assert s.products == calls == fail_at
    assert torch.equal(s.x, lanczos(A, b, max_iterations=fail_at - 1).solve().x)
    again = krylov.solve()
    assert (again.status, again.products) == (Status.NONFINITE, 1)
    assert torch.equal(again.x, s.x)
    if fail_at == 5:  # What was learnt before stays of use.
        short = krylov.solve(damping=1e6)
        assert (short.status, short.products) == (Status.CONVERGED, 0)


def test_a_nonfinite_right_hand_side_ends_at_once():
    s = lanczos(torch.eye(3), torch.tensor([1.0, NAN, 1.0])).solve(radius=1.0)
    assert (s.status, s.products) == (Status.NONFINITE, 0)
    assert torch.equal(s.x, torch.zeros(3))


def test_the_answer_comes_in_the_kind_of_b():
    matrix = np.diag([1.0, 2.0, -4.0])
    for radius in (0.1, 10.0, INF):
        s = lanczos(matrix, np.ones(3)).solve(radius=radius)
        expected = lanczos(Dense(torch.from_numpy(matrix)), torch.ones(3).double())
        assert isinstance(s.x, np.ndarray)
        assert np.array_equal(s.x, expected.solve(radius=radius).x.numpy())
        assert isinstance(s.Ax, np.ndarray)
    assert isinstance(s.direction, np.ndarray)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: lanczos(torch.eye(2), torch.ones(2)).solve(radius=0.0), ValueError, "got 0.0"),
        (lambda: lanczos(torch.eye(2), torch.ones(2)).solve(radius=-1.0), ValueError, "got -1.0"),
        (lambda: lanczos(torch.eye(2), torch.ones(2)).solve(radius=NAN), ValueError, "got nan"),
        (lambda: lanczos(torch.eye(2), torch.ones(2)).solve(damping=-1.0), ValueError, "damping"),
        (lambda: lanczos(torch.eye(2), torch.ones(2)).solve(damping=INF), ValueError, "damping"),
        (lambda: lanczos(torch.eye(3), torch.ones(2)), ValueError, "b has 2 elements"),
        (lambda: lanczos(torch.eye(2), torch.ones(2, 1)), ValueError, r"vector \(n,\)"),
        (lambda: lanczos(torch.eye(2).double(), torch.ones(2)), ValueError, "convert one"),
        (lambda: lanczos(torch.eye(2), [1.0, 1.0]), TypeError, "NumPy array"),  # type: ignore[type-var]
        (lambda: lanczos(torch.eye(2), torch.ones(2), rtol=NAN), ValueError, "rtol"),
        (lambda: lanczos(torch.eye(2), torch.ones(2), max_iterations=-1), ValueError, "-1"),
        (lambda: lanczos(torch.eye(2), torch.ones(2), search=-1), ValueError, "search .* -1"),
    ],
)
def test_errors_say_what_came_and_what_was_wanted(call, error, message):
    with pytest.raises(error, match=message):
        call()


@given(spd_matrices(dtypes=(torch.float64,), max_size=12), SEEDS)
def test_a_positive_matrix_without_a_radius_is_solved_as_by_a_direct_solve(A, seed):
    b = vectors_like(A, seed=seed)
    s = lanczos(A, b, rtol=1e-9).solve()
    assert s.status is Status.CONVERGED
    assert float((A @ s.x - b).norm()) <= 1e-9 * float(b.norm())


def test_ghosts_of_converged_eigenvalues_take_no_products():
    eigenvalues = torch.logspace(0, -10, 100, dtype=torch.float64)
    A = matrix_with_spectrum(eigenvalues, seed=0)
    b = A @ vectors_like(A, seed=1)
    krylov = lanczos(A, b, rtol=1e-12)
    for damping in (1e-4, 1e-8, 0.0):
        s = krylov.solve(damping=damping)
        assert s.status is Status.CONVERGED
    assert krylov.size <= 100


@pytest.mark.parametrize(("share", "status"), [(2.1, "CONVERGED"), (1.9, "STAGNATED")])
def test_the_margin_of_rounding_is_eps_of_the_two_terms(share, status):
    """b − A x = 0 exactly: what is left is eps (‖A‖ ‖x‖ + ‖b‖) = 2 eps ‖b‖."""
    rtol = share * torch.finfo(torch.float32).eps
    for scale in (2.0, 2.0**-40):
        s = lanczos(scale * torch.eye(4), torch.ones(4), rtol=rtol).solve()
        assert s.status is Status[status]
        assert torch.equal(s.x, torch.ones(4) / scale)


def test_as_many_products_as_distinct_eigenvalues():
    eigenvalues = 1.0 + torch.arange(30).remainder(4).double()
    A = matrix_with_spectrum(eigenvalues, seed=0)
    assert lanczos(A, vectors_like(A, seed=1), rtol=1e-10).solve().products == 4
