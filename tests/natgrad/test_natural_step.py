"""The three answers together: operator, solver, step (theory, lines 5 to 8)."""

import math
from functools import partial, wraps

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical, kl_divergence

import natgrad
from natgrad import Status, StepSizeStatus
from natgrad.curvature import Dense
from natgrad.testing.strategies import spd_matrices, vectors_like

DAMPING = st.floats(0, 1)
DOUBLE = (torch.float64,)
exact = partial(natgrad.cg, rtol=1e-12)


@given(spd_matrices(max_size=8, dtypes=(torch.float64,)), st.integers(0, 999))
def test_the_natural_direction_beats_random_feasible_ones(K, seed):
    """max gᵀd subject to dᵀKd <= 2δ is attained by d ∝ K⁻¹g."""
    delta = 0.01
    g = vectors_like(K, seed=seed)
    s = natgrad.cg(K, g, rtol=1e-10)
    alpha, _ = natgrad.step_size(s.x @ s.Ax, delta)
    best = alpha * g @ s.x
    generator = torch.Generator().manual_seed(seed)
    rivals = torch.randn(1000, len(K), generator=generator, dtype=torch.float64)
    rivals *= ((2 * delta) / ((rivals @ K) * rivals).sum(dim=1)).sqrt()[:, None]
    assert torch.allclose(((rivals @ K) * rivals).sum(dim=1), torch.tensor(2 * delta).double())
    assert (rivals @ g <= best * (1 + 1e-9)).all()


def test_where_distance_is_euclidean_it_is_plain_ascent(generator):
    """max gᵀd subject to dᵀd <= 2δ."""
    g = torch.randn(6, generator=generator, dtype=torch.float64)
    s = natgrad.cg(natgrad.curvature.Identity(6, dtype=torch.float64), g)
    alpha, _ = natgrad.step_size(s.x @ s.Ax, 0.01)
    assert torch.allclose(alpha * s.x, 0.02**0.5 * g / g.norm(), rtol=1e-14)


@given(
    spd_matrices(max_size=8, dtypes=(torch.float64,)),
    st.integers(0, 999), st.floats(-90, 90), st.floats(-50, 50), st.floats(-8, 2),
)  # fmt: skip
def test_the_scaled_step_is_delta_away_to_rounding_at_any_scale_of_metric_and_direction(
    K, seed, metric_digits, direction_digits, delta_digits
):
    """½ (αs)ᵀK(αs) = δ, multiplied out anew."""
    delta = 10.0**delta_digits
    K, s = 10.0**metric_digits * K, 10.0**direction_digits * vectors_like(K, seed=seed)
    alpha, status = natgrad.step_size(s @ K @ s, delta)
    assert status is natgrad.StepSizeStatus.OK
    d = alpha * s
    # Relative to |d|ᵀ|K||d|, which is what rounding errors of the product are in proportion to.
    rounding = 1e-14 * float(d.abs() @ K.abs() @ d.abs())
    assert abs(0.5 * float(d @ K @ d) - delta) <= rounding + 1e-14 * delta


@given(spd_matrices(max_size=6, dtypes=(torch.float64,)), st.integers(0, 999))
def test_the_step_does_not_depend_on_the_coordinates(K, seed):
    """In θ = B ξ the metric is BᵀKB and the gradient Bᵀg: the same step in θ."""
    g = vectors_like(K, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    B = torch.eye(len(K)).double() + 0.3 * torch.tril(
        torch.randn(len(K), len(K), generator=generator, dtype=torch.float64)
    )
    if torch.linalg.cond(B) > 100:
        return

    def step(metric, gradient):
        s = natgrad.cg(metric, gradient, rtol=1e-12)
        alpha, _ = natgrad.step_size(s.x @ s.Ax, 0.01)
        return alpha * s.x

    expected, transformed = step(K, g), B @ step(B.mT @ K @ B, B.mT @ g)
    assert torch.allclose(expected, transformed, rtol=1e-5, atol=1e-6 * float(expected.norm()))


def test_a_step_on_logits_has_the_kl_that_was_asked_for(generator):
    """With the exact metric the KL of the whole step is δ to the order that δ neglects."""
    logits = torch.randn(5, 4, generator=generator, dtype=torch.float64).requires_grad_()
    # A shift of all logits of a row changes nothing: the gradient of any objective is free of it.
    g = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    g = (g - g.mean(dim=1, keepdim=True)).flatten()
    old = Categorical(logits=logits.detach().clone())
    K = natgrad.Fisher(Categorical(logits=logits), [logits])
    step = natgrad.natural_step(K, g, damping=1e-8, bound=1e-6)
    new = Categorical(logits=logits.detach() + step.d.view(5, 4))
    kl = kl_divergence(old, new).mean()
    assert abs(float(kl) / 1e-6 - 1) < 0.02


def test_the_readme_loop_lowers_the_loss(generator):
    x = torch.randn(64, 3, generator=generator)
    y = (x[:, 0] > 0).long()
    weight = torch.zeros(3, 2, requires_grad=True)

    def loss_at(theta):
        natgrad.flat.assign([weight], theta)
        new = Categorical(logits=x @ weight)
        return -new.log_prob(y).mean(), kl_divergence(old, new).mean()

    losses = []
    for _ in range(5):
        old = Categorical(logits=(x @ weight).detach())
        loss = -Categorical(logits=x @ weight).log_prob(y).mean()
        losses.append(float(loss.detach()))
        g = natgrad.flat.gradient(loss, [weight])
        K = natgrad.Fisher(Categorical(logits=x @ weight), [weight])
        step = natgrad.natural_step(K, -g, damping=1e-3, bound=0.05)
        theta = natgrad.flat.flatten([weight])
        search = natgrad.backtracking(loss_at, theta, step.d, bound=0.05)
        natgrad.flat.assign([weight], search.theta)
        assert search.accepted
        assert search.constraint <= 0.05
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.6 * losses[0]


@given(spd_matrices(max_size=8, dtypes=DOUBLE), st.integers(0, 999), DAMPING, st.floats(-8, 2))
def test_the_step_is_alpha_s_and_its_account_is_that_of_d(K, seed, damping, digits):
    g, bound = vectors_like(K, seed=seed), 10.0**digits
    step = natgrad.natural_step(K, g, damping=damping, bound=bound, solver=exact)
    assert step.status is StepSizeStatus.OK
    assert torch.equal(step.d, (step.scale * step.solution.x).to(g))
    quadratic = float(step.d @ K @ step.d)
    assert quadratic == pytest.approx(2 * bound, rel=1e-6)  # without the damping
    assert float(step.curvature) == pytest.approx(quadratic, rel=1e-6)
    assert float(step.slope) == pytest.approx(float(g @ step.d), rel=1e-9)


@given(spd_matrices(max_size=8, dtypes=DOUBLE), st.integers(0, 999), st.floats(1e-3, 1e3))
def test_alpha_is_the_smaller_of_both_limits(K, seed, longest):
    g = vectors_like(K, seed=seed)
    bounded = natgrad.natural_step(K, g, damping=0.1, bound=0.01)
    both = natgrad.natural_step(K, g, damping=0.1, bound=0.01, longest=longest)
    free = natgrad.natural_step(K, g, damping=0.1, longest=longest)
    assert float(free.scale) == longest
    assert float(both.scale) == min(longest, float(bounded.scale))


@given(spd_matrices(max_size=8, dtypes=DOUBLE), st.integers(0, 999))
def test_rates_of_their_own_scale_s_before_the_bound(K, seed):
    """d = α D s, of D s the longest that keeps the bound; one product more."""
    g = vectors_like(K, seed=seed)
    rates = torch.linspace(1, 3, len(g), dtype=torch.float64)
    operator = Dense(K)
    step = natgrad.natural_step(operator, g, damping=0.1, bound=1e-9, longest=rates, solver=exact)
    if step.status is StepSizeStatus.NOT_DESCENT:  # D s need not go along g
        assert float(g @ (rates * step.solution.x)) <= 0
        return
    assert torch.allclose(step.d / step.scale, rates * step.solution.x, rtol=1e-12)
    assert float(step.d @ K @ step.d) == pytest.approx(2e-9, rel=1e-6)
    assert operator.products == step.solution.products + 1


@given(spd_matrices(max_size=8, dtypes=DOUBLE), st.integers(0, 999))
def test_a_solver_without_damping_gets_the_damped_operator(K, seed):
    g, operator = vectors_like(K, seed=seed), Dense(K)
    plain = natgrad.natural_step(
        operator, g, damping=0.1, bound=0.01, solver=lambda A, b: natgrad.cg(A, b, rtol=1e-12)
    )
    knowing = natgrad.natural_step(K, g, damping=0.1, bound=0.01, solver=exact)
    assert torch.allclose(plain.d, knowing.d, rtol=1e-6, atol=1e-8 * float(knowing.d.norm()))
    assert operator.products == plain.solution.products + 1


def test_a_direction_without_curvature_goes_as_far_as_longest_says():
    K, g = torch.zeros(3, 3), torch.ones(3)
    step = natgrad.natural_step(K, g, damping=0.5, bound=0.01, longest=2.0)
    assert step.status is StepSizeStatus.OK
    assert step.d.tolist() == [4.0, 4.0, 4.0]
    without = natgrad.natural_step(K, g, damping=0.5, bound=0.01)
    assert without.status is StepSizeStatus.NONPOSITIVE_CURVATURE
    assert not without.d.any()


def test_without_any_limit_there_is_no_step():
    step = natgrad.natural_step(torch.eye(2), torch.ones(2), damping=0.0)
    assert step.status is StepSizeStatus.NONPOSITIVE_CURVATURE
    assert not step.d.any()


def _found(x, Ax, status=Status.CONVERGED):
    return lambda K, g, damping: natgrad.Solution(x, Ax, status, 1, 1, 0.0)


@pytest.mark.parametrize(
    ("solver", "status"),
    [
        (_found(torch.ones(2), -torch.ones(2)), StepSizeStatus.NONPOSITIVE_CURVATURE),
        (_found(-torch.ones(2), -torch.ones(2)), StepSizeStatus.NOT_DESCENT),
        (_found(torch.zeros(2), torch.zeros(2)), StepSizeStatus.NOT_DESCENT),
        (_found(torch.full((2,), math.nan), torch.ones(2)), StepSizeStatus.NONFINITE),
        (_found(torch.ones(2), torch.full((2,), math.inf)), StepSizeStatus.NONFINITE),
        (_found(torch.ones(2), torch.ones(2), Status.NONFINITE), StepSizeStatus.NONFINITE),
    ],
)
def test_what_is_no_step_is_zero_and_says_why(solver, status):
    step = natgrad.natural_step(
        torch.eye(2), torch.ones(2), damping=0.0, bound=0.01, longest=1.0, solver=solver
    )
    assert step.status is status
    assert step.d.tolist() == [0.0, 0.0]


@given(spd_matrices(max_size=6, dtypes=DOUBLE), st.integers(0, 999))
def test_without_damping_a_solver_gets_the_operator_itself(K, seed):
    g, given_to = vectors_like(K, seed=seed), []

    def solve(A, b):
        given_to.append((A, b))
        return exact(A, b)

    step = natgrad.natural_step(K, g, damping=0.0, bound=0.01, solver=solve)
    ((A, b),) = given_to
    assert A is K
    assert b is g
    assert torch.equal(step.d, natgrad.natural_step(K, g, damping=0.0, bound=0.01, solver=exact).d)


@pytest.mark.parametrize(("size", "stretch"), [(1.0, 1e6), (1e6, 1.0), (1e-6, 1e3)])
@pytest.mark.parametrize(("units", "status"), [(0.5, "OK"), (2.0, "NONPOSITIVE_CURVATURE")])
def test_below_zero_by_less_than_rounding_is_zero(size, stretch, units, status):
    """sᵀK s = −u eps ‖s‖ ‖K s‖, the rounding of a product with vectors of these norms."""
    eps = torch.finfo(torch.float64).eps
    s = size * torch.tensor([1.0, 0.0], dtype=torch.float64)
    Ks = stretch * torch.tensor([-units * eps, 1.0], dtype=torch.float64)
    step = natgrad.natural_step(
        torch.eye(2), s, damping=0.0, bound=0.01, longest=1.0, solver=_found(s, Ks)
    )
    assert step.status is StepSizeStatus[status]
    assert torch.equal(step.d, s if status == "OK" else torch.zeros_like(s))


def test_a_curvature_beyond_all_numbers_is_told_from_none():
    tiny = torch.tensor([1e-170, 0.0], dtype=torch.float64)  # its square is 0, or next to it
    found = _found(tiny, 1e-150 * torch.tensor([1.0, 0.0], dtype=torch.float64))
    step = natgrad.natural_step(torch.eye(2), tiny, damping=0.0, bound=1e300, solver=found)
    assert step.status is StepSizeStatus.NONFINITE
    assert not step.d.any()


class _Callable:
    """A solver without a code object, with or without the argument."""

    def __init__(self, *, damped):
        self.damped = damped

    def __call__(self, *args, **settings):
        assert ("damping" in settings) is self.damped
        return natgrad.cg(*args, **settings)


class _Damped(_Callable):
    def __call__(self, K, g, *, damping):
        return super().__call__(K, g, damping=damping)


class _Undamped(_Callable):
    def __call__(self, K, g):
        return super().__call__(K, g)


@wraps(natgrad.cg)
def _decorated(*args, **settings):
    assert "damping" in settings
    return natgrad.cg(*args, **settings)


@pytest.mark.parametrize(
    "solver",
    [_Damped(damped=True), _Undamped(damped=False), _decorated, partial(_decorated, rtol=1e-6)],
)
def test_solvers_that_are_objects_or_decorated_get_what_they_take(solver):
    K, g = Dense(torch.diag(torch.tensor([1.0, 4.0]))), torch.ones(2)
    step = natgrad.natural_step(K, g, damping=0.5, longest=1.0, solver=solver)
    assert torch.allclose(step.d, torch.tensor([1 / 1.5, 1 / 4.5]))
