import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from natgrad.solvers import Status, SteihaugPath, cg, steihaug
from natgrad.testing.strategies import (
    matrix_with_spectrum,
    spd_matrices,
    symmetric_matrices,
    vectors_like,
)

SEEDS = st.integers(0, 2**31 - 1)
# Of the model's own length ‖g‖ / ‖A‖: from far inside the first step to beyond the last.
RADII = st.floats(-3, 3).map(lambda power: 10.0**power)
ANY = spd_matrices() | symmetric_matrices()
FLOAT64 = spd_matrices(dtypes=(torch.float64,)) | symmetric_matrices(dtypes=(torch.float64,))
ON_BOUNDARY = (Status.BOUNDARY, Status.NEGATIVE_CURVATURE)


def exact_norm(x):
    """Summed without rounding."""
    return float(np.linalg.norm(x.double().numpy().astype(np.longdouble)))


def model(A, g, s):
    A, g, s = A.double(), g.double(), s.double()
    return float(g @ s + 0.5 * s @ (A @ s))


def rounding(A, g, s):
    """What the model loses in the matrix's own precision."""
    size = float(g.norm()) * float(s.norm()) + float(A.norm()) * float(s.norm()) ** 2
    return 4 * len(g) * torch.finfo(g.dtype).eps * size


def cauchy_decrease(A, g, radius, *, direction=None):
    """The best decrease along −g, or another direction of given length, inside the radius."""
    A, g = A.double(), g.double()
    d, length = (-g, float(g.norm())) if direction is None else direction
    slope, curvature = -float(g @ d), float(d @ (A @ d))
    end = radius / length
    t = min(end, slope / curvature) if curvature > 0 else end
    return t * slope - 0.5 * t * t * curvature


@given(ANY, SEEDS, RADII, st.sampled_from([1e-2, 1e-5]))
def test_no_step_is_longer_than_the_radius(A, seed, radius, rtol):
    g = vectors_like(A, seed=seed)
    s = steihaug(A, g, radius, rtol=rtol)
    eps = torch.finfo(A.dtype).eps
    assert exact_norm(s.x) <= radius * (1 + 2 * eps)
    if s.status in ON_BOUNDARY:
        assert exact_norm(s.x) >= radius * (1 - 2 * eps)


@given(ANY, SEEDS, RADII)
def test_the_model_falls_at_least_as_far_as_at_the_cauchy_point(A, seed, radius):
    g = vectors_like(A, seed=seed)
    s = steihaug(A, g, radius)
    assert model(A, g, s.x) <= -cauchy_decrease(A, g, radius) + rounding(A, g, s.x)


@given(A=spd_matrices(max_log10_condition=4, dtypes=(torch.float64,)), seed=SEEDS, radius=RADII)
def test_half_of_the_best_decrease_is_reached_where_A_is_positive(
    A, seed, radius, dense_trust_region
):
    """Yuan, "On the truncated conjugate gradient method", 2000."""
    g = vectors_like(A, seed=seed)
    best = dense_trust_region(A, -g, radius)
    s = steihaug(A, g, radius, rtol=1e-6)
    assert model(A, g, s.x) <= 0.5 * best.value + rounding(A, g, s.x)
    assert model(A, g, s.x) >= best.value - rounding(A, g, s.x)


@settings(max_examples=50)
@given(FLOAT64, SEEDS)
def test_the_step_grows_and_the_model_falls_along_the_path(A, seed):
    g = vectors_like(A, seed=seed)
    steps = [steihaug(A, g, 100.0, rtol=0.0, max_iterations=k) for k in range(len(A) + 1)]
    # Until rounding has taken the orthogonality of the residuals, which is when they are small.
    floor = 1e-3 * float(g.norm())
    steps = list(
        itertools.takewhile(
            lambda s: s.status is Status.MAX_ITERATIONS and s.residual_norm > floor, steps
        )
    )
    for before, after in itertools.pairwise(steps):
        assert float(after.x.norm()) >= float(before.x.norm()) * (1 - 1e-9)
        assert model(A, g, after.x) <= model(A, g, before.x) + rounding(A, g, after.x)


@given(FLOAT64, SEEDS, st.lists(RADII, min_size=2, max_size=6))
def test_a_larger_radius_never_makes_the_model_larger(A, seed, radii):
    g = vectors_like(A, seed=seed)
    path = SteihaugPath(A, g)
    steps = [path.solve(radius).x for radius in sorted(radii)]
    for smaller, larger in itertools.pairwise(steps):
        assert model(A, g, larger) <= model(A, g, smaller) + rounding(A, g, larger)


@given(symmetric_matrices(), SEEDS, RADII)
def test_negative_curvature_leads_to_the_boundary_along_a_direction_that_has_it(A, seed, radius):
    g = vectors_like(A, seed=seed)
    s = steihaug(A, g, radius, rtol=1e-12)
    eps = torch.finfo(A.dtype).eps
    if s.status is Status.NEGATIVE_CURVATURE:
        assert s.direction is not None
        d = s.direction.double()
        allowed = 4 * len(A) * eps * float(A.double().norm()) * float(d @ d)
        assert float(d @ (A.double() @ d)) <= allowed
        assert exact_norm(s.x) >= radius * (1 - 2 * eps)
        # It leads there from the last iterate inside.
        last = steihaug(A, g, radius, rtol=1e-12, max_iterations=s.iterations - 1).x.double()
        way = s.x.double() - last
        assert float(way @ d) >= (1 - 100 * eps) * float(way.norm() * d.norm())
    else:
        assert s.direction is None


@given(symmetric_matrices(dtypes=(torch.float64,)), SEEDS)
def test_a_gradient_along_negative_curvature_is_followed_downhill(A, seed):
    g = torch.linalg.eigh(A).eigenvectors[:, 0]
    s = steihaug(A, g, 3.0)
    assert s.status is Status.NEGATIVE_CURVATURE
    assert (s.iterations, s.products) == (1, 1)
    assert torch.allclose(s.x, -3 * g, atol=1e-12)


@given(spd_matrices(dtypes=(torch.float64,)), SEEDS)
def test_inside_it_is_the_newton_step_and_costs_one_product_more_than_iterations(A, seed):
    g = vectors_like(A, seed=seed)
    s = steihaug(A, g, 1e6, rtol=1e-8)
    assert s.status is Status.CONVERGED
    assert s.products == s.iterations + 1
    assert float((A @ s.x + g).norm()) <= 1e-8 * float(g.norm())
    assert torch.allclose(s.x, cg(A, -g, rtol=1e-8).x, rtol=1e-5, atol=1e-5 * float(s.x.norm()))
    cut = steihaug(A, g, 0.5 * float(s.x.norm()), rtol=1e-8)
    assert cut.status is Status.BOUNDARY
    assert cut.products == cut.iterations


@given(ANY, SEEDS, RADII)
def test_the_product_returned_is_that_of_the_step(A, seed, radius):
    s = steihaug(A, vectors_like(A, seed=seed), radius)
    error = float((A.double() @ s.x.double() - s.Ax.double()).norm())
    size = float(A.double().norm()) * float(s.x.double().norm())
    g_size = float(vectors_like(A, seed=seed).double().norm())
    steps = 1 + s.iterations
    assert error <= 4 * steps * len(A) * torch.finfo(A.dtype).eps * (size + g_size)
    residual = (s.Ax.double() + vectors_like(A, seed=seed).double()).norm()
    assert np.isclose(s.residual_norm, float(residual), rtol=1e-5, atol=1e-6 * g_size)


@given(spd_matrices(max_size=10, max_log10_condition=2, dtypes=(torch.float64,)), SEEDS, RADII)
def test_a_preconditioner_measures_the_radius_in_the_norm_of_its_inverse(A, seed, radius):
    """With M = D², D symmetric, it is a change of variables s = D y of the plain solve."""
    spectrum = torch.logspace(0, -1, len(A), dtype=torch.float64)
    D = matrix_with_spectrum(spectrum, seed=seed)
    P = matrix_with_spectrum(spectrum**-2, seed=seed)
    g = vectors_like(A, seed=seed + 1)
    s = steihaug(A, g, radius, preconditioner=D @ D)
    plain = steihaug(D @ A @ D, D @ g, radius, rtol=1e-12)
    condition = 100  # of P
    inverse_eps = condition * 1e-13
    assert float((s.x @ (P @ s.x)).sqrt()) <= radius * (1 + inverse_eps)
    if s.status is Status.BOUNDARY and plain.status is Status.BOUNDARY:
        assert float((s.x @ (P @ s.x)).sqrt()) >= radius * (1 - inverse_eps)
        assert torch.allclose(s.x, D @ plain.x, rtol=1e-6, atol=1e-6 * float(s.x.norm()))
    along = -(D @ (D @ g))
    decrease = cauchy_decrease(A, g, radius, direction=(along, float((along @ P @ along).sqrt())))
    assert model(A, g, s.x) <= -decrease + condition * rounding(A, g, s.x)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8, 0.95, 0.999])
def test_under_a_preconditioner_the_boundary_is_met_where_it_is_in_the_other_variables(share):
    A = torch.linspace(1, 100, 20, dtype=torch.float64).diag()
    D = torch.linspace(2, 0.5, 20, dtype=torch.float64).diag()
    g = torch.ones(20, dtype=torch.float64)
    radius = share * float((D @ torch.linalg.inv(D @ A @ D) @ D @ g / D.diagonal()).norm())
    s = steihaug(A, g, radius, preconditioner=D @ D)
    plain = steihaug(D @ A @ D, D @ g, radius)
    assert s.status is plain.status is Status.BOUNDARY
    assert s.iterations == plain.iterations
    torch.testing.assert_close(s.x, D @ plain.x, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(s.Ax, A @ s.x, rtol=1e-10, atol=1e-12)


@given(symmetric_matrices(dtypes=(torch.float64,)), SEEDS, RADII)
def test_the_norm_of_the_radius_does_not_drift_over_many_iterations(A, seed, radius):
    """The recurrences of the textbook are off by 1e-4 here."""
    n = len(A)
    B = A + 1.001 * torch.eye(n, dtype=A.dtype)
    spectrum = torch.logspace(0, -2, n, dtype=torch.float64)
    M, P = matrix_with_spectrum(spectrum, seed=1), matrix_with_spectrum(1 / spectrum, seed=1)
    s = steihaug(B, vectors_like(A, seed=seed), radius, preconditioner=M, rtol=1e-10)
    assert float((s.x @ (P @ s.x)).sqrt()) <= radius * (1 + 1e-11)


@given(spd_matrices(dtypes=(torch.float64,)), SEEDS)
def test_the_inverse_as_preconditioner_needs_one_iteration(A, seed):
    s = steihaug(A, vectors_like(A, seed=seed), 1e6, preconditioner=torch.linalg.inv(A), rtol=1e-8)
    assert (s.status, s.iterations) == (Status.CONVERGED, 1)


@given(FLOAT64, SEEDS)
def test_negative_curvature_under_a_preconditioner_ends_on_the_boundary_of_its_norm(A, seed):
    assume(float(torch.linalg.eigvalsh(A)[0]) < -0.5)
    d = 0.5 + torch.rand(len(A), generator=torch.Generator().manual_seed(seed), dtype=A.dtype)
    s = steihaug(A, vectors_like(A, seed=seed), 50.0, preconditioner=d.diag(), rtol=1e-12)
    assert s.status in ON_BOUNDARY
    assert np.isclose(float((s.x.square() / d).sum().sqrt()), 50.0, rtol=1e-12)


@pytest.mark.parametrize("power", [6, 12])
def test_a_newton_step_as_long_as_the_condition_lies_inside_a_longer_radius(power):
    lowest = 10.0**-power
    A = torch.diag(torch.tensor([1.0, lowest], dtype=torch.float64))
    g = torch.tensor([0.1, 1.0], dtype=torch.float64)
    s = steihaug(A, g, 10.0 / lowest, rtol=1e-3)
    assert s.status is Status.CONVERGED
    assert s.x[1] == pytest.approx(-1 / lowest, rel=1e-3)
    cut = steihaug(A, g, 0.5 / lowest)
    assert cut.status is Status.BOUNDARY
    assert exact_norm(cut.x) == pytest.approx(0.5 / lowest, rel=1e-12)


def test_an_exactly_singular_direction_is_followed_to_the_boundary():
    s = steihaug(torch.diag(torch.tensor([1.0, 0.0])), torch.tensor([0.0, 1.0]), 2.0)
    assert s.status is Status.NEGATIVE_CURVATURE
    assert torch.equal(s.x, torch.tensor([0.0, -2.0]))
