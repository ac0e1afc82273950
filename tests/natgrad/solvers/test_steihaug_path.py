from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from natgrad.curvature import Dense
from natgrad.solvers import Status, SteihaugPath, steihaug
from natgrad.testing.strategies import spd_matrices, symmetric_matrices, vectors_like

SEEDS = st.integers(0, 2**31 - 1)
RADII = st.floats(-3, 3).map(lambda power: 10.0**power)
ANY = spd_matrices() | symmetric_matrices()
NAN = float("nan")


def same(left, right):
    return (
        left.status is right.status
        and left.iterations == right.iterations
        and torch.equal(left.x, right.x)
        and torch.equal(left.Ax, right.Ax)
        and left.residual_norm == right.residual_norm
    )


@given(ANY, SEEDS, st.lists(RADII, min_size=1, max_size=8), st.booleans())
def test_solving_again_equals_a_fresh_solve_bit_for_bit(A, seed, radii, preconditioned):
    g = vectors_like(A, seed=seed)
    diagonal = 1.0 + torch.arange(len(A)).remainder(3).to(A.dtype)
    settings: dict[str, Any] = {"preconditioner": diagonal.diag()} if preconditioned else {}
    path = SteihaugPath(A, g, **settings)
    for radius in radii:
        assert same(path.solve(radius), steihaug(A, g, radius, **settings))


@given(ANY, SEEDS, st.lists(RADII, min_size=2, max_size=8))
def test_only_a_radius_larger_than_all_before_costs_products(A, seed, radii):
    g = vectors_like(A, seed=seed)
    path = SteihaugPath(A, g)
    total, largest = 0, 0.0
    for radius in radii:
        products = path.solve(radius).products
        if radius <= largest:
            assert products == 0
        total, largest = total + products, max(largest, radius)
    assert total == steihaug(A, g, largest).products


@given(ANY, SEEDS, RADII, st.integers(-30, 30), st.integers(-30, 30), st.sampled_from([0, 1]))
def test_powers_of_two_change_nothing_but_the_scale(A, seed, radius, a_power, g_power, wide):
    if A.dtype == torch.float64 and wide:
        a_power, g_power = 8 * a_power, 8 * g_power
    a, c = 2.0**a_power, 2.0**g_power
    g = vectors_like(A, seed=seed)
    plain, scaled = steihaug(A, g, radius), steihaug(A * a, g * c, radius * c / a)
    assert plain.status is scaled.status
    assert plain.iterations == scaled.iterations
    assert torch.equal(plain.x * (c / a), scaled.x)
    assert torch.equal(plain.Ax * c, scaled.Ax)
    assert scaled.residual_norm == pytest.approx(plain.residual_norm * c, rel=1e-12)


@pytest.mark.parametrize("power", [-300, -200, -150, 150, 200, 300])
@pytest.mark.parametrize("curvature", [1.0, -1.0])
def test_a_radius_far_from_the_scale_of_the_model_is_kept(power, curvature):
    A = torch.diag(torch.tensor([1.0, 2.0, 3.0 * curvature], dtype=torch.float64))
    g = torch.ones(3, dtype=torch.float64)
    radius = 10.0**power
    s = steihaug(A, g, radius)
    if power > 0 and curvature > 0:
        assert s.status is Status.CONVERGED
    else:
        assert float((s.x / radius).norm()) == pytest.approx(1.0, rel=1e-14)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_a_model_whose_squares_leave_the_range_is_solved(scale):
    A = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).diag() * scale
    g = torch.ones(3, dtype=torch.float64) * scale
    for radius, status in ((0.1, Status.BOUNDARY), (10.0, Status.CONVERGED)):
        s = steihaug(A, g, radius)
        assert s.status is status
        assert s.residual_norm == pytest.approx(
            float((s.Ax / scale + 1).norm()) * scale, abs=1e-12 * scale
        )


def test_a_step_outside_the_range_of_the_dtype_is_told():
    s = steihaug(torch.eye(3) * 1e-30, torch.tensor([1.0, 0.3, 0.7]) * 1e30, 1e70)
    assert s.status is Status.NONFINITE


def test_a_step_of_just_the_radius_ends_on_it():
    s = steihaug(torch.eye(2), torch.tensor([3.0, 4.0]), 5.0)
    assert s.status is Status.BOUNDARY
    assert torch.equal(s.x, torch.tensor([-3.0, -4.0]))


@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_a_radius_decides_between_an_iterate_inside_and_a_shorter_step(k):
    A = torch.linspace(1, 100, 30, dtype=torch.float64).diag()
    g = torch.ones(30, dtype=torch.float64)
    inside = steihaug(A, g, 1e3, max_iterations=k)
    length = float(inside.x.norm())
    beyond = steihaug(A, g, (1 + 1e-9) * length, max_iterations=k)
    assert beyond.status is Status.MAX_ITERATIONS
    assert torch.equal(beyond.x, inside.x)
    within = steihaug(A, g, (1 - 1e-9) * length)
    assert (within.status, within.iterations) == (Status.BOUNDARY, k)


def test_the_margin_of_rounding_does_not_grow_with_n():
    """Of 1,000 unknowns, at a tolerance fifty times its rounding."""
    s = steihaug(torch.linspace(1, 2, 1000).diag(), torch.ones(1000), 1e3, rtol=1e-4)
    assert s.status is Status.CONVERGED


@pytest.mark.parametrize(("share", "status"), [(2.1, "CONVERGED"), (1.9, "STAGNATED")])
def test_the_margin_of_rounding_is_eps_of_the_two_terms(share, status):
    """A s + g = 0 exactly: what is left is eps (‖A‖ ‖s‖ + ‖g‖) = 2 eps ‖g‖."""
    for scale in (2.0, 2.0**-40):
        rtol = share * torch.finfo(torch.float32).eps
        s = steihaug(scale * torch.eye(3), torch.ones(3), 10.0 / scale, rtol=rtol)
        assert s.status is Status[status]
        assert torch.equal(s.x, -torch.ones(3) / scale)
    exact = steihaug(torch.eye(3), torch.ones(3), 10.0, rtol=0.0)
    assert (exact.status, exact.iterations) == (Status.STAGNATED, 1)


@pytest.mark.parametrize("scale", [1.0, 2.0**-20, 2.0**20])
def test_it_ends_at_the_first_iterate_that_passes(scale):
    A = torch.linspace(1, 50, 400, dtype=torch.float64).diag()
    g = torch.ones(400, dtype=torch.float64)
    cut = [steihaug(A, g, 100.0, rtol=0.0, max_iterations=k) for k in range(12)]
    norms = [s.residual_norm for s in cut]
    for k in (3, 6, 10):
        between = (norms[k] * norms[k - 1]) ** 0.5
        relative = steihaug(A, scale * g, 100.0 * scale, rtol=between / 20)
        absolute = steihaug(A, scale * g, 100.0 * scale, rtol=0.0, atol=between * scale)
        assert relative.status is absolute.status is Status.CONVERGED
        assert relative.iterations == absolute.iterations == k


def test_the_answer_is_of_the_dtype_of_g():
    for dtype in (torch.float32, torch.float64):
        for radius in (0.1, 10.0):
            s = steihaug(torch.eye(3, dtype=dtype), torch.ones(3, dtype=dtype), radius)
            assert s.x.dtype == s.Ax.dtype == dtype


def test_a_step_of_unit_size_is_found_where_g_and_A_are_far_apart_in_float32():
    A, g = torch.tensor([1.0, 2.0, -3.0]).diag(), torch.ones(3)
    plain = steihaug(A.double() * 1e-25, g.double(), 1.0)
    s = steihaug(A * 1e-25, g, 1.0)
    assert s.status is plain.status
    assert torch.allclose(s.x.double(), plain.x, rtol=1e-6)


@pytest.mark.parametrize("bad", [NAN, float("inf"), -float("inf")])
@pytest.mark.parametrize("fail_at", [1, 2, 5])
def test_a_nonfinite_product_ends_the_path_with_the_last_sound_step(bad, fail_at):
    A = torch.diag(torch.linspace(1, 100, 30, dtype=torch.float64))
    g = torch.ones(30, dtype=torch.float64)
    calls = 0

    def multiply(v):
        nonlocal calls
        calls += 1
        return A @ v if calls != fail_at else torch.full_like(v, bad)

    path = SteihaugPath(multiply, g)
    s = path.solve(1e3)
    assert s.status is Status.NONFINITE
    assert s.products == calls == fail_at
    assert torch.equal(s.x, steihaug(A, g, 1e3, max_iterations=fail_at - 1).x)
    if fail_at > 1:  # What was learnt before stays of use.
        shorter = path.solve(1e-4)
        assert (shorter.status, shorter.products) == (Status.BOUNDARY, 0)


def test_a_nonfinite_gradient_or_preconditioner_ends_at_once_and_finite():
    for s in (
        steihaug(torch.eye(3), torch.full((3,), NAN), 1.0),
        steihaug(torch.eye(3), torch.tensor([1.0, NAN, 1.0]), 1.0),
        steihaug(torch.eye(3), torch.ones(3), 1.0, preconditioner=lambda v: v * NAN),
    ):
        assert s.status is Status.NONFINITE
        assert (s.products, s.iterations) == (0, 0)
        assert torch.equal(s.x, torch.zeros(3))


def test_a_preconditioner_that_is_not_positive_is_told():
    calls = 0

    def turns(v):
        nonlocal calls
        calls += 1
        return v if calls < 3 else -v

    A = torch.diag(torch.linspace(1, 100, 30))
    for preconditioner in (lambda v: -v, turns):
        s = steihaug(A, torch.ones(30), 1e3, preconditioner=preconditioner)
        assert s.status is Status.NEGATIVE_CURVATURE
        assert s.direction is None
        assert float(s.x.norm()) < 1e3


def test_a_zero_gradient_costs_no_product():
    path = SteihaugPath(Dense(-torch.eye(3)), torch.zeros(3))
    for radius in (1.0, 2.0):
        s = path.solve(radius)
        assert (s.status, s.products, s.iterations) == (Status.ZERO_RHS, 0, 0)
        assert torch.equal(s.x, torch.zeros(3))


def test_limits_of_iterations_and_atol():
    A, g = torch.diag(torch.linspace(1, 50, 40)), torch.ones(40)
    none = steihaug(A, g, 10.0, max_iterations=0)
    assert (none.status, none.products) == (Status.MAX_ITERATIONS, 0)
    short = steihaug(A, g, 10.0, max_iterations=2)
    assert (short.status, short.products, short.iterations) == (Status.MAX_ITERATIONS, 2, 2)
    loose = steihaug(A, g, 10.0, rtol=0.0, atol=0.5)
    assert loose.status is Status.CONVERGED
    assert loose.residual_norm <= 0.5
    beyond = steihaug(A, g, 10.0, rtol=1e-9)
    assert beyond.status in (Status.STAGNATED, Status.MAX_ITERATIONS)


def test_the_answer_comes_in_the_kind_of_g():
    matrix = np.diag([1.0, 2.0, -4.0])
    for radius in (0.1, 10.0):
        s = steihaug(matrix, np.ones(3), radius)
        expected = steihaug(torch.from_numpy(matrix), torch.ones(3, dtype=torch.float64), radius)
        for ours, theirs in ((s.x, expected.x), (s.Ax, expected.Ax)):
            assert isinstance(ours, np.ndarray)
            assert np.array_equal(ours, theirs.numpy())
        if s.direction is not None:
            assert expected.direction is not None
            assert np.array_equal(s.direction, expected.direction.numpy())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: steihaug(torch.eye(2), torch.ones(2), 0.0), ValueError, "radius .* got 0.0"),
        (lambda: steihaug(torch.eye(2), torch.ones(2), -1.0), ValueError, "radius .* got -1.0"),
        (lambda: steihaug(torch.eye(2), torch.ones(2), NAN), ValueError, "radius .* got nan"),
        (lambda: steihaug(torch.eye(2), torch.ones(2), float("inf")), ValueError, "use cg"),
        (lambda: steihaug(torch.eye(3), torch.ones(2), 1.0), ValueError, "g has 2 elements"),
        (lambda: steihaug(torch.eye(2), torch.ones(2, 1), 1.0), ValueError, r"vector \(n,\)"),
        (lambda: steihaug(torch.eye(2).double(), torch.ones(2), 1.0), ValueError, "convert one"),
        (lambda: steihaug(torch.eye(2), [1.0, 1.0], 1.0), TypeError, "g must be .* NumPy array"),  # type: ignore[type-var]
        (lambda: steihaug("A", torch.ones(2), 1.0), TypeError, "A must support"),  # type: ignore[arg-type]
        (lambda: steihaug(torch.eye(2), torch.ones(2), 1.0, rtol=-1.0), ValueError, "rtol"),
        (lambda: SteihaugPath(torch.eye(2), torch.ones(2), atol=NAN), ValueError, "atol"),
        (lambda: SteihaugPath(torch.eye(2), torch.ones(2), max_iterations=-1), ValueError, "-1"),
    ],
)
def test_errors_say_what_came_and_what_was_wanted(call, error, message):
    with pytest.raises(error, match=message):
        call()
