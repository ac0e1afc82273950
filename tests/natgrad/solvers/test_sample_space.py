import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.subjects import Rows
from natgrad.solvers import SampleSpace, Status, lanczos, sample_space
from natgrad.testing.strategies import DTYPES, vectors_like

SEEDS = st.integers(0, 2**31 - 1)
NAN, INF = float("nan"), float("inf")
NONFINITE = Status.NONFINITE


def jacobian(m, n, rank, log10_condition, seed, dtype):
    """Singular values from 1 to 1 / condition."""
    rank = min(rank, m, n)
    samples = vectors_like(torch.eye(m * rank, dtype=torch.float64), seed=seed).reshape(m, rank)
    parameters = vectors_like(torch.eye(n * rank, dtype=torch.float64), seed=seed + 1)
    left, _ = torch.linalg.qr(samples)
    right, _ = torch.linalg.qr(parameters.reshape(n, rank))
    values = torch.logspace(0, -log10_condition, rank, dtype=torch.float64)
    return ((left * values) @ right.mT).to(dtype)


def jacobians(max_log10_condition=2.0, dtypes=DTYPES, max_rank=12):
    return st.builds(
        jacobian,
        st.integers(1, 12),
        st.integers(1, 30),
        st.integers(1, max_rank),
        st.floats(0, max_log10_condition),
        SEEDS,
        st.sampled_from(dtypes),
    )


FLOAT64 = (torch.float64,)
DAMPINGS = st.floats(-6, 2).map(lambda power: 10.0**power)


def samples_like(J, seed):
    return vectors_like(J @ J.mT, seed=seed)


def normal_equations(J, r, damping):
    """JᵀJ + λ I and Jᵀr, in float64."""
    J, r = J.double(), r.double()
    return J.mT @ J + damping * torch.eye(J.shape[1], dtype=torch.float64), J.mT @ r


@given(jacobians(), SEEDS, st.lists(DAMPINGS, min_size=1, max_size=5))
def test_one_decomposition_solves_the_primal_system_for_every_damping(J, seed, dampings):
    """(JᵀJ + λ I)⁻¹Jᵀ = Jᵀ(J Jᵀ + λ I)⁻¹."""
    r = samples_like(J, seed)
    space = sample_space(Rows(J))
    eps = torch.finfo(J.dtype).eps
    for damping in dampings:
        s = space.solve(r, damping=damping)
        matrix, b = normal_equations(J, r, damping)
        exact = torch.linalg.solve(matrix, b)
        # J Jᵀ, u and Jᵀu are rounded: eps ‖K‖ ‖u‖ in sample space, over λ in the parameters'.
        allowed = 20 * len(r) * eps * (1 + 1 / damping) * float(r.double().norm()) / damping**0.5
        assert float((s.x.double() - exact).norm()) <= allowed + 1e-12
        claims = s.residual_norm <= 1e-5 * float(b.norm()) * (1 + 1e-3)
        assert claims or s.status in (Status.STAGNATED, Status.ZERO_RHS)
        assert J.dtype == torch.float32 or s.status is not Status.STAGNATED
        assert (s.products, s.iterations, s.multiplier) == (2, 0, 0.0)


@given(jacobians(dtypes=FLOAT64), SEEDS)
def test_without_damping_it_is_the_least_squares_solution_of_least_norm(J, seed):
    r = samples_like(J, seed)
    s = sample_space(Rows(J)).solve(r)
    exact = torch.linalg.pinv(J, rtol=1e-9) @ r
    assert torch.allclose(s.x, exact, atol=1e-8 * float(exact.norm()))
    assert torch.allclose(J @ s.x, J @ exact, atol=1e-8 * float(r.norm()))


@given(jacobians(), SEEDS, DAMPINGS, st.floats(-3, 1).map(lambda power: 10.0**power))
def test_no_step_is_longer_than_the_radius(J, seed, damping, radius):
    r = samples_like(J, seed)
    space = sample_space(Rows(J))
    s, free = space.solve(r, damping=damping, radius=radius), space.solve(r, damping=damping)
    eps = torch.finfo(J.dtype).eps
    assert float(s.x.double().norm()) <= radius * (1 + 2 * eps)
    if float(free.x.double().norm()) > radius * (1 + 1e-3):
        assert s.status is Status.BOUNDARY
        assert s.multiplier > 0
    if s.status is Status.BOUNDARY:
        # The radius is a damping: that of the free solution for the sum of both.
        again = space.solve(r, damping=damping + s.multiplier)
        assert float((s.x - again.x).norm()) <= 1e3 * len(r) * eps / damping * radius
    else:
        assert float((s.x - free.x).norm()) <= 4 * eps * radius


@given(
    J=jacobians(dtypes=FLOAT64),
    seed=SEEDS,
    damping=st.just(0.0) | DAMPINGS,
    radius=st.floats(-3, 1).map(lambda power: 10.0**power),
)
def test_within_a_radius_it_is_the_dense_solution_and_that_of_the_parameter_space(
    J, seed, damping, radius, dense_trust_region
):
    r = samples_like(J, seed)
    s = sample_space(Rows(J)).solve(r, damping=damping, radius=radius)
    matrix, b = normal_equations(J, r, damping)

    def value(x):
        return float(0.5 * x @ (matrix @ x) - b @ x)

    best = dense_trust_region(matrix, b, radius)
    scale = float(b.norm()) * radius + (1 + damping) * radius**2
    assert abs(value(s.x) - best.value) <= 1e-9 * scale
    primal = lanczos(matrix, b, rtol=1e-9, search=0).solve(radius=radius)
    assert abs(value(primal.x) - best.value) <= 1e-7 * scale


@given(jacobians(max_log10_condition=4.0), SEEDS, DAMPINGS)
def test_the_account_is_true(J, seed, damping):
    r = samples_like(J, seed)
    s = sample_space(Rows(J)).solve(r, damping=damping)
    matrix, b = normal_equations(J, r, 0.0)
    x, eps = s.x.double(), torch.finfo(J.dtype).eps
    u_norm = float(r.double().norm()) / damping
    assert float((s.Ax.double() - matrix @ x).norm()) <= 20 * len(r) * eps * u_norm
    residual = float((b - matrix @ x - damping * x).norm())
    assert abs(s.residual_norm - residual) <= 20 * len(r) * eps * (1 + damping) * u_norm


def test_a_solution_that_its_dtype_cannot_hold_is_not_called_accurate():
    J = jacobian(10, 20, 10, 3.0, 0, torch.float32)
    r = samples_like(J, 1)
    s = sample_space(Rows(J)).solve(r, damping=1e-7)
    matrix, b = normal_equations(J, r, 1e-7)
    residual = float((b - matrix @ s.x.double()).norm())
    assert s.residual_norm > 0.01 * residual > 1e-6 * float(b.norm())


@given(jacobians(), SEEDS, st.integers(-12, 12), st.integers(-12, 12), DAMPINGS)
def test_powers_of_two_change_nothing_but_the_scale(J, seed, j_power, r_power, damping):
    a, c = 2.0**j_power, 2.0**r_power
    r = samples_like(J, seed)
    plain, scaled = sample_space(Rows(J)), sample_space(Rows(J * a))
    for radius in (INF, 0.1):
        left = plain.solve(r, damping=damping, radius=radius)
        right = scaled.solve(r * c, damping=damping * a * a, radius=radius * c / a)
        assert left.status is right.status
        assert torch.equal(left.x * (c / a), right.x)
        assert left.multiplier * a * a == pytest.approx(right.multiplier, rel=1e-12)


@pytest.mark.parametrize("bad", [NAN, INF])
def test_nonfinite_input_is_told_and_x_is_zero(bad):
    J = torch.eye(2, 3)
    broken = J.clone()
    broken[0, 0] = bad
    for s in (
        sample_space(Rows(J)).solve(torch.tensor([1.0, bad]), radius=1.0),
        sample_space(Rows(broken)).solve(torch.ones(2)),
    ):
        assert s.status is Status.NONFINITE
        assert torch.equal(s.x, torch.zeros(3))


def test_a_matrix_that_is_not_finite_is_told_whatever_its_way_back_gives():
    assert sample_space(Wrong(torch.full((2, 2), NAN))).solve(torch.ones(2)).status is NONFINITE


def test_a_product_outside_the_range_is_told():
    s = sample_space(Rows(1e19 * torch.eye(2))).solve(torch.full((2,), 1e20))
    assert s.status is NONFINITE  # x is 10, JᵀJ x is 1e39
    assert not s.x.any()
    assert not s.Ax.any()


def test_a_solution_of_just_the_radius_needs_no_multiplier():
    s = sample_space(Rows(torch.eye(2))).solve(torch.tensor([3.0, 4.0]), radius=5.0)
    assert (s.status, s.multiplier) == (Status.CONVERGED, 0.0)
    assert torch.equal(s.x, torch.tensor([3.0, 4.0]))


def test_a_right_hand_side_without_a_gradient_has_the_zero_solution():
    J = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    for r in (torch.zeros(2), torch.tensor([0.0, 1.0])):
        for damping in (0.0, 0.1):
            s = sample_space(Rows(J)).solve(r, damping=damping, radius=1.0)
            assert s.status is Status.ZERO_RHS
            assert not s.x.any()


def test_eigenvalues_are_those_of_the_matrix_and_rounding_is_zero():
    J = jacobian(8, 20, 3, 1.0, 0, torch.float64)
    space = sample_space(Rows(J))
    assert isinstance(space, SampleSpace)
    expected = torch.tensor([0.0] * 5 + [1e-2, 1e-1, 1.0], dtype=torch.float64)
    assert torch.allclose(space.eigenvalues, expected, rtol=1e-10)
    assert not space.eigenvalues[:5].any()


def test_the_tolerance_and_what_counts_as_rounding_include_their_bounds():
    eps = torch.finfo(torch.float64).eps
    r = torch.ones(2, dtype=torch.float64)
    assert sample_space(Rows(r.diag())).solve(r, rtol=0.0).status is Status.CONVERGED
    at_rounding = torch.tensor([2 * eps, 1.0], dtype=torch.float64)  # n eps times the largest
    assert sample_space(Wrong(at_rounding.diag())).eigenvalues[0] == 0
    assert sample_space(Wrong((2 * at_rounding).diag())).eigenvalues[0] == 0
    above = torch.tensor([3 * eps, 1.0], dtype=torch.float64)
    assert sample_space(Wrong(above.diag())).eigenvalues[0] == 3 * eps
    below = torch.tensor([-19 * eps, 1.0], dtype=torch.float64)
    assert sample_space(Wrong(below.diag())).eigenvalues[0] == 0
    with pytest.raises(ValueError, match="positive semidefinite"):
        sample_space(Wrong(torch.tensor([-21 * eps, 1.0], dtype=torch.float64).diag()))
    slanted = torch.tensor([[1.9, 2e-8], [0.0, 1.9]], dtype=torch.float64)  # √eps · 1.9 is 2.8e-8
    assert sample_space(Wrong(slanted)).eigenvalues == pytest.approx([1.9, 1.9])


def test_small_rows_are_no_rounding_and_what_squares_cannot_hold_is_told():
    """Rows of J of norms 1 : w: K, in float32 even, has their squares to its last digit."""
    J = jacobian(6, 20, 6, 0.0, 0, torch.float64)
    for dtype, w, lost in ((torch.float32, 1e-3, False), (torch.float32, 1e-5, False),
                           (torch.float64, 1e-7, False), (torch.float64, 1e-9, True)):  # fmt: skip
        weights = torch.tensor([1.0, 1.0, 1.0, w, w, w], dtype=torch.float64)
        space = sample_space(Rows((weights.unsqueeze(1) * J).to(dtype)))
        assert space.lost is lost
        kept = int((space.eigenvalues > 0).sum())
        assert kept == (3 if lost else 6)


def test_a_claim_counts_what_was_left_out():
    s = sample_space(Rows(torch.tensor([1e-150, 1.0], dtype=torch.float64).diag())).solve(
        torch.tensor([1e200, 1.0], dtype=torch.float64)
    )
    assert s.status is Status.STAGNATED  # x is (0, 1) and Jᵀr (1e50, 1)
    assert s.residual_norm == pytest.approx(1e50)


def test_squares_that_left_the_range_are_no_zero_right_hand_side():
    J = 1e-200 * torch.eye(2, dtype=torch.float64)
    s = sample_space(Rows(J)).solve(torch.ones(2, dtype=torch.float64))
    assert s.status is Status.STAGNATED


def test_rounding_grows_with_the_largest_eigenvalue():
    space = sample_space(Rows(torch.ones(100, 1, dtype=torch.float64)))
    assert float(space.eigenvalues[-1]) == pytest.approx(100)
    assert not space.eigenvalues[:-1].any()


class Wrong:
    def __init__(self, matrix):
        self.matrix = matrix

    def to_dense(self):
        return self.matrix

    def transpose(self, u):
        return u


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample_space(Wrong(-torch.eye(2))), "positive semidefinite .* -1 of the largest"),
        (lambda: sample_space(Wrong(torch.ones(2, 2).triu())), "symmetric"),
        (lambda: sample_space(Wrong(torch.ones(2, 3))), r"square .* \(2, 3\)"),
        (lambda: sample_space(Wrong(torch.ones(0, 0))), r"not empty, got shape \(0, 0\)"),
        (lambda: sample_space(Rows(torch.eye(2))).solve(torch.ones(3)), r"\(2,\) .* got \(3,\)"),
        (lambda: sample_space(Rows(torch.eye(2))).solve(torch.ones(2).double()), "float64"),
        (lambda: sample_space(Rows(torch.eye(2))).solve(torch.ones(2), damping=-1.0), "got -1.0"),
        (lambda: sample_space(Rows(torch.eye(2))).solve(torch.ones(2), damping=NAN), "got nan"),
        (lambda: sample_space(Rows(torch.eye(2))).solve(torch.ones(2), radius=0.0), "got 0.0"),
        (lambda: sample_space(Rows(torch.eye(2))).solve(torch.ones(2), radius=NAN), "got nan"),
    ],
)
def test_errors_say_what_came_and_what_was_wanted(call, message):
    with pytest.raises(ValueError, match=message):
        call()
