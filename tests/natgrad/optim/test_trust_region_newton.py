"""Newton's step in a region, beside the dense Hessian and steihaug's answer for it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.functional import hessian, jacobian

import natgrad
from bench.problems.more_garbow_hillstrom import PROBLEMS
from natgrad.optim import OptimizerStatus, TrustRegionNewton
from natgrad.optim.trust_region_search import search_radius
from natgrad.solvers import Solution, Status, steihaug
from natgrad.testing.strategies import matrix_with_spectrum
from natgrad.trust_region import update_radius

SEEDS = st.integers(0, 2**31 - 1)
DOUBLE = torch.float64
ENDS = (OptimizerStatus.CONVERGED, OptimizerStatus.NO_IMPROVEMENT)


def vector(*values):
    return torch.tensor(values, dtype=DOUBLE)


def random_(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=DOUBLE)


class Minimisation:
    """f from a start by the optimizer; ``step()`` gives its report."""

    def __init__(self, function, start, dtype=DOUBLE, **given):
        self.function = function
        self.x = torch.as_tensor(start, dtype=dtype).clone().requires_grad_()
        self.optimizer = TrustRegionNewton([self.x], **given)

    def closure(self):
        self.optimizer.zero_grad()
        loss = self.function(self.x)
        loss.backward()
        return loss

    @property
    def theta(self):
        return self.x.detach().clone()

    @property
    def radius(self):
        return self.optimizer.param_groups[0]["radius"]

    def step(self):
        self.optimizer.step(self.closure)
        return self.optimizer.last_step

    def run(self, steps, done=lambda x: False):
        for _ in range(steps):
            if self.step().status is not OptimizerStatus.ACCEPTED or done(self.theta):
                break
        return self.optimizer.last_step


def random_quartic(seed, n=6):
    """Bounded below, with saddles: Σ (a + Bx + x³/3)² of random numbers."""
    a, B = random_(n, seed=seed), random_(n, n, seed=seed + 1)
    return lambda x: (a + B @ x + x**3 / 3).square().sum()


def model(function, theta):
    """f, g and H at θ, dense."""
    value = float(function(theta))
    return value, jacobian(function, theta), hessian(function, theta)


def reduction(g, H, s):
    return -float(g @ s + s @ H @ s / 2)


@settings(max_examples=15)
@given(SEEDS, st.floats(-3, 2))
def test_the_step_is_steihaugs_on_the_dense_hessian(seed, log10_radius):
    function = random_quartic(seed)
    run = Minimisation(function, 2 * random_(6, seed=seed + 2), radius=10.0**log10_radius)
    largest = 0.0
    for _ in range(3):
        theta, before = run.theta, run.radius
        report = run.step()
        assert report.status is OptimizerStatus.ACCEPTED
        value, g, H = model(function, theta)
        largest = max(largest, float(g.norm()))
        rtol = min(0.1, (float(g.norm()) / largest) ** 0.5)
        s = steihaug(H, g, report.radius, rtol=rtol)
        assert report.radius <= before
        assert report.solver_status is s.status
        torch.testing.assert_close(run.theta, theta + s.x, rtol=1e-9, atol=1e-11)
        # What was refused before it deserved that.
        tried = before
        while tried > report.radius * (1 + 1e-9):
            refused = steihaug(H, g, tried, rtol=rtol).x
            promised = reduction(g, H, refused)
            assert value - float(function(theta + refused)) <= 0.1 * promised + 1e-9 * value
            tried = min(tried, float(refused.norm())) / 4
        assert tried == pytest.approx(report.radius, rel=1e-9)


@settings(max_examples=12)
@given(SEEDS, st.sampled_from([0.01, 0.1, 0.6]))
def test_accepted_steps_keep_what_the_model_promises_and_the_radius_follows(seed, accept_ratio):
    function = random_quartic(seed)
    run = Minimisation(function, random_(6, seed=seed + 2), accept_ratio=accept_ratio)
    for _ in range(12):
        theta = run.theta
        report = run.step()
        s = run.theta - theta
        if report.status is not OptimizerStatus.ACCEPTED:
            assert torch.equal(s, torch.zeros_like(s))
            break
        value, g, H = model(function, theta)
        actual, predicted = value - float(function(run.theta)), reduction(g, H, s)
        if predicted < 1e-6 * value or float(s.norm()) < 1e-6 * float(theta.norm()):
            break  # rounding from here on
        assert report.predicted_reduction == pytest.approx(predicted, rel=1e-5)
        assert report.actual_reduction == pytest.approx(actual, rel=1e-5)
        assert actual > accept_ratio * predicted * (1 - 1e-9)
        assert float(s.norm()) <= report.radius * (1 + 1e-12)
        # At least what the steepest descent inside the region gives: the Cauchy point.
        curvature, length = float(g @ H @ g), report.radius / float(g.norm())
        if curvature > 0:
            length = min(length, float(g @ g) / curvature)
        assert predicted >= reduction(g, H, -length * g) * (1 - 1e-9)
        # A first radius, the Cauchy step's length, is met by that step without being a bound.
        inside = report.solver_status in (Status.CONVERGED, Status.STAGNATED)
        met = not inside or float(s.norm()) >= (1 - 1e-8) * report.radius
        follows = update_radius(report.radius, actual / predicted, at_boundary=met)
        assert run.radius == pytest.approx(follows)


@pytest.mark.parametrize("accept_ratio", [0.3, 0.9])
def test_a_refused_candidate_is_not_tried_again(accept_ratio):
    """However much is asked: a ratio of ½ is refused at 0.9, and the radius cut."""
    function = rosenbrock
    run = Minimisation(function, [-1.2, 1.0], accept_ratio=accept_ratio, radius=10.0)
    seen, evaluate = [], run.function

    def recorded(x):
        seen.append(x.detach().clone())
        return evaluate(x)

    run.function = recorded
    run.run(10)
    candidates = {tuple(theta.tolist()) for theta in seen}
    starts = 9  # each accepted candidate is the start of the next step
    assert len(seen) - len(candidates) <= starts


def rosenbrock(x):
    return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_first_radius_is_the_length_of_the_cauchy_step(scale):
    run = Minimisation(lambda x: scale * rosenbrock(x), [-1.2, 1.0])
    _, g, H = model(rosenbrock, run.theta)
    report = run.step()
    assert report.radius == pytest.approx(float(g.norm() ** 3 / (g @ H @ g).abs()))


def test_a_convex_quadratic_takes_one_step():
    A = matrix_with_spectrum(torch.logspace(0, 3, 12, dtype=DOUBLE), seed=0)
    m = random_(12, seed=1)
    run = Minimisation(lambda x: (x - m) @ A @ (x - m) / 2, torch.zeros(12), radius=1e6, rtol=1e-12)
    report = run.step()
    torch.testing.assert_close(run.theta, m, rtol=1e-9, atol=1e-9)
    assert report.predicted_reduction == pytest.approx(report.actual_reduction)
    assert report.evaluations == 2


@pytest.mark.parametrize("start", [1e-3, 1e-8, 1e-14])
def test_a_saddle_is_left(start):
    """x² − y² + y⁴ / 4 has one at 0, to which the gradient points almost exactly."""

    def function(x):
        return x[0] ** 2 - x[1] ** 2 + x[1] ** 4 / 4

    run = Minimisation(function, [1.0, start])
    met = []
    for _ in range(60):
        report = run.step()
        if report.status is not OptimizerStatus.ACCEPTED:
            break
        met.append(report.solver_status)
    assert Status.NEGATIVE_CURVATURE in met
    assert torch.allclose(run.theta, vector(0.0, math.sqrt(2)), atol=1e-6)


def lanczos(H, g, rtol):
    return natgrad.lanczos(H, -g, rtol=1e-10)


def test_lanczos_leaves_even_the_line_that_leads_to_the_saddle():
    """Steihaug's path from (1, 0) has no part along y; the global minimiser of the model has."""

    def function(x):
        return x[0] ** 2 - x[1] ** 2 + x[1] ** 4 / 4

    steihaugs = Minimisation(function, [1.0, 0.0])
    steihaugs.run(20)
    assert torch.allclose(steihaugs.theta, vector(0.0, 0.0), atol=1e-6)
    run = Minimisation(function, [1.0, 0.0], solver=lanczos)
    run.run(40)
    assert torch.allclose(run.theta.abs(), vector(0.0, math.sqrt(2)), atol=1e-6)


@settings(max_examples=15)
@given(SEEDS, st.floats(-2, 1))
def test_with_lanczos_it_is_the_global_minimiser_of_the_model(seed, log10_radius):
    """(H + μ I) s = −g with H + μ I positive semidefinite: no step of that length is better."""
    function = random_quartic(seed)
    start = random_(6, seed=seed + 2)
    run = Minimisation(function, start, radius=10.0**log10_radius, solver=lanczos)
    report = run.step()
    assert report.status is OptimizerStatus.ACCEPTED
    _, g, H = model(function, start)
    s = run.theta - start
    gradient = H @ s + g
    multiplier = -float(gradient @ s / (s @ s))
    scale = float(g.norm() + (H @ s).norm())
    assert float((gradient + multiplier * s).norm()) <= 1e-6 * scale
    assert multiplier >= -1e-6 * scale / float(s.norm())
    lowest = float(torch.linalg.eigvalsh(H)[0])
    assert lowest + multiplier >= -1e-6 * scale / float(s.norm())
    assert report.predicted_reduction >= reduction(g, H, steihaug(H, g, report.radius).x) - 1e-9


# --- the objective


def test_the_objective_is_the_one_whose_backward_was_called():
    """Several calls, of scalars and of vectors with weights: the sum of what was accumulated."""
    first, second, third = (random_quartic(seed, n=3) for seed in (1, 2, 3))
    weight, B = vector(0.5, -2.0), random_(2, 3, seed=4)

    def values(x):
        return (B @ x).sin() + x[:2] ** 2

    def total(x):
        return first(x) + 3 * second(x) + weight @ values(x) + third(x)

    plain = Minimisation(total, [0.5, -1.0, 0.3], radius=0.1)
    several = Minimisation(total, [0.5, -1.0, 0.3], radius=0.1)
    x, optimizer = several.x, several.optimizer

    def closure():
        optimizer.zero_grad()
        parts = [first(x), second(x), values(x), third(x)]
        parts[0].backward()
        parts[1].backward(torch.tensor(3.0, dtype=DOUBLE))
        parts[2].backward(gradient=weight, retain_graph=False)
        torch.Tensor.backward(parts[3])
        return parts[0] + 3 * parts[1] + weight @ parts[2] + parts[3]

    several.closure = closure  # type: ignore[method-assign]
    for _ in range(5):
        left, right = plain.step(), several.step()
        assert left.status is right.status is OptimizerStatus.ACCEPTED
        assert left.predicted_reduction == pytest.approx(right.predicted_reduction, rel=1e-9)
        torch.testing.assert_close(plain.theta, several.theta, rtol=1e-9, atol=1e-11)


def test_maximising_takes_the_hessian_of_the_negative():
    function = random_quartic(1)
    start = random_(6, seed=5)
    down = Minimisation(function, start, radius=0.5)
    up = Minimisation(lambda x: -function(x), start, radius=0.5, maximize=True)
    for _ in range(5):
        down.step()
        up.step()
        assert torch.equal(down.theta, up.theta)


def test_the_model_is_that_of_the_step_with_rates():
    """d = D s: −gᵀd − dᵀH d / 2, with each group's own rate."""
    function = random_quartic(3, n=4)
    x, y = (random_(2, seed=seed).requires_grad_() for seed in (1, 2))
    optimizer = TrustRegionNewton(
        [{"params": [x], "lr": 0.5}, {"params": [y], "lr": 0.25}], radius=0.05
    )

    def closure():
        optimizer.zero_grad()
        loss = function(torch.cat([x, y]))
        loss.backward()
        return loss

    theta = torch.cat([x, y]).detach()
    optimizer.step(closure)
    _, g, H = model(function, theta)
    d = torch.cat([x, y]).detach() - theta
    s = steihaug(H, g, 0.05, rtol=0.1).x
    torch.testing.assert_close(d, s * vector(0.5, 0.5, 0.25, 0.25), rtol=1e-9, atol=1e-12)
    assert optimizer.last_step is not None
    assert optimizer.last_step.predicted_reduction == pytest.approx(reduction(g, H, d))


# --- the search for a radius


class Ascending:
    """A solver whose steps go up the model until they are short."""

    def __init__(self, below):
        self.below, self.tried = below, []

    def __call__(self, *, radius):
        self.tried.append(radius)
        x = vector(-radius if radius < self.below else radius)
        return Solution(x, x, Status.BOUNDARY, iterations=1, products=1, residual_norm=0.0)


def test_a_step_that_promises_nothing_costs_a_shorter_radius_and_no_evaluation():
    """As rounding makes one of a long step along a direction without curvature."""
    evaluated = []

    class FromZero:
        theta, gradient, loss = vector(0.0), vector(2.0), vector(2.0)

        def evaluate(self, theta):
            evaluated.append(theta)
            return (theta + 2).square() / 2, 0.0

    for below, status in ((0.1, OptimizerStatus.ACCEPTED), (0.0, OptimizerStatus.NOT_DESCENT)):
        evaluated.clear()
        solve = Ascending(below)
        found = search_radius(
            FromZero(), solve, 1.0, torch.ones((), dtype=DOUBLE), lambda v: v, accept_ratio=0.1,  # type: ignore[arg-type]
            max_attempts=10,
        )  # fmt: skip
        assert found.report.status is status
        assert solve.tried == [4.0**-k for k in range(len(solve.tried))]
        assert len(evaluated) == (status is OptimizerStatus.ACCEPTED)


# --- the test problems

QUICK = [1, 2, 4, 5, 7, 16, 23, 26, 31, 33, 35]
SCALES = [1e-12, 1.0, 1e12]


def solved(problem, x):
    value, minima = float(problem.objective(x)), problem.minima
    return any(value == pytest.approx(m, rel=1e-6, abs=1e-12 if m == 0 else 0) for m in minima)


def solve_scaled(problem, scale, steps):
    run = Minimisation(lambda x: scale * problem.objective(x), problem.start)
    report = run.run(steps, done=lambda x: solved(problem, x))
    assert report.status is OptimizerStatus.ACCEPTED
    assert solved(problem, run.theta)


@pytest.mark.parametrize("number", QUICK)
def test_reaches_a_listed_minimum_in_any_unit(number):
    for scale in SCALES:
        solve_scaled(PROBLEMS[number - 1], scale, steps=60)


@pytest.mark.slow
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: f"{p.number} {p.name}")
def test_reaches_a_listed_minimum_of_every_problem(problem, scale):
    """Of problem 10 within 450 steps, of problem 3 within 200, of the others within 120."""
    solve_scaled(problem, scale, steps=450)


@pytest.mark.parametrize("power", [-40, 40])
@pytest.mark.parametrize("number", [1, 3, 7, 10, 17, 24, 35])
def test_powers_of_two_in_the_objective_change_no_bit(number, power):
    problem = PROBLEMS[number - 1]
    plain = Minimisation(problem.objective, problem.start)
    scaled = Minimisation(lambda x: problem.objective(x) * 2.0**power, problem.start)
    for _ in range(10):
        left, right = plain.step(), scaled.step()
        assert left.status is right.status
        assert left.radius == right.radius
        assert torch.equal(plain.theta, scaled.theta)
