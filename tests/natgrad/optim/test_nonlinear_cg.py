"""Hager and Zhang's directions and the conditions at the points that are accepted."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.problems.more_garbow_hillstrom import PROBLEMS
from natgrad.optim import NonlinearCG, OptimizerStatus
from natgrad.testing.strategies import matrix_with_spectrum

SEEDS = st.integers(0, 2**31 - 1)
DOUBLE = torch.float64
ETA, DELTA, SIGMA, EPSILON = 0.4, 0.1, 0.9, 1e-6
ENDS = (OptimizerStatus.CONVERGED, OptimizerStatus.NO_IMPROVEMENT)


class Minimisation:
    """f from a start; ``path`` holds (θ, g, report) of every step taken."""

    def __init__(self, function, start, dtype=DOUBLE, **given):
        self.function = function
        self.x = torch.as_tensor(start, dtype=dtype).clone().requires_grad_()
        self.optimizer = NonlinearCG([self.x], **given)
        self.path, self.visited = [], []

    def closure(self):
        self.visited.append(self.theta)
        self.optimizer.zero_grad()
        loss = self.function(self.x)
        loss.backward()
        return loss

    @property
    def theta(self):
        return self.x.detach().clone()

    @property
    def report(self):
        return self.optimizer.last_step

    def step(self):
        before = self.theta
        self.optimizer.step(self.closure)
        if self.report.status is OptimizerStatus.ACCEPTED:
            assert self.x.grad is not None
            self.path.append((before, self.x.grad.clone(), self.report))
        return self.report.status

    def run(self, steps, done=lambda x: False):
        """The number of steps until it is ``done`` or ends."""
        for count in range(1, steps + 1):
            if self.step() is not OptimizerStatus.ACCEPTED or done(self.theta):
                return count
        return steps

    def directions(self):
        """d of θ + α d for every step taken."""
        ends = [theta for theta, _, _ in self.path[1:]] + [self.theta]
        return [
            (end - theta) / report.step_scale
            for end, (theta, _, report) in zip(ends, self.path, strict=True)
        ]


def rosenbrock(x):
    return (10 * (x[1:] - x[:-1] ** 2)).square().sum() + (1 - x[:-1]).square().sum()


def random_quartic(seed, n=6):
    """Bounded below, not convex: Σ (a + Bx + x³)² of random numbers."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, generator=generator, dtype=DOUBLE)
    B = torch.randn(n, n, generator=generator, dtype=DOUBLE)
    return lambda x: (a + B @ x + x**3 / 3).square().sum()


def slope_along(function, x, d):
    x = x.clone().requires_grad_()
    value = function(x)
    gradient = torch.autograd.grad(value, x)[0]
    return float(value.detach()), float(gradient @ d)


@settings(max_examples=8)
@given(SEEDS)
def test_accepted_points_satisfy_wolfes_conditions_or_their_approximation(seed):
    function = random_quartic(seed)
    run = Minimisation(function, torch.linspace(-1, 1, 6))
    run.run(15, done=lambda x: float(function(x)) < 1e-12)
    ends = [theta for theta, _, _ in run.path[1:]] + [run.theta]
    for (theta, g, report), end, d in zip(run.path, ends, run.directions(), strict=True):
        assert report.evaluations < 40  # or the lowest point seen would do
        (start, slope), (value, there) = (slope_along(function, point, d) for point in (theta, end))
        assert slope == pytest.approx(float(g @ d), rel=1e-9)
        assert report.actual_reduction == pytest.approx(start - value, abs=1e-12 * start)
        slack = 1e-9 * abs(slope)
        assert there >= SIGMA * slope - slack
        wolfe = value - start <= DELTA * report.step_scale * slope + 1e-12 * start
        flat = (2 * DELTA - 1) * slope >= there - slack
        assert wolfe or (flat and value <= start + EPSILON * start)


@settings(max_examples=8)
@given(SEEDS)
def test_directions_are_hager_and_zhangs_and_descend_by_seven_eighths(seed):
    run = Minimisation(random_quartic(seed), torch.linspace(-1, 1, 6))
    run.run(15)
    directions = run.directions()
    assert torch.allclose(directions[0], -run.path[0][1], rtol=1e-9)
    truncated = 0
    for k in range(1, len(run.path)):
        g, last, d_last, d = run.path[k][1], run.path[k - 1][1], directions[k - 1], directions[k]
        y = g - last
        dy = d_last @ y
        beta = (y - 2 * d_last * (y @ y) / dy) @ g / dy
        bound = ETA * (d_last @ last) / (d_last @ d_last)
        expected = torch.maximum(beta, bound) * d_last - g
        size = float(d.norm())
        # Where the step has become rounding of θ, so has what is computed from it.
        if run.path[k][2].step_scale * size < 1e-7 * float(run.path[k][0].norm()):
            break
        assert torch.allclose(d, expected, atol=1e-5 * size)
        if beta >= bound:
            assert float(g @ d) <= -7 / 8 * float(g @ g) * (1 - 1e-6)
        else:
            truncated += 1
            assert float(g @ d) < 0
    assert truncated < len(run.path) / 2


@pytest.mark.parametrize("n", [8, 60])
@pytest.mark.parametrize("distinct", [1, 2, 3, 5, 8])
def test_a_quadratic_takes_about_as_many_steps_as_it_has_distinct_eigenvalues(distinct, n):
    values = torch.logspace(0, 2 if distinct > 1 else 0, distinct, dtype=DOUBLE)
    A = matrix_with_spectrum(values[torch.arange(n) % distinct], seed=1)
    run = Minimisation(lambda x: x @ A @ x / 2, torch.linspace(-1, 1, n))
    first = A @ run.theta
    steps = run.run(100, done=lambda x: bool((A @ x).norm() <= 1e-8 * first.norm()))
    assert steps <= 4 * distinct
    assert run.report.status is OptimizerStatus.ACCEPTED


@pytest.mark.parametrize("power", [-900, -700, -40, 40, 700, 900])
def test_powers_of_two_in_the_objective_change_no_bit(power):
    plain = Minimisation(rosenbrock, [-1.2, 1.0])
    scaled = Minimisation(lambda x: rosenbrock(x) * 2.0**power, [-1.2, 1.0])
    for _ in range(15):
        plain.step()
        scaled.step()
        assert torch.equal(plain.theta, scaled.theta)
        assert plain.report.evaluations == scaled.report.evaluations
        assert plain.report.status is scaled.report.status is OptimizerStatus.ACCEPTED
        assert plain.report.actual_reduction * 2.0**power == scaled.report.actual_reduction


@pytest.mark.parametrize("start", [0.0, 3.0])
@pytest.mark.parametrize("scale", [1e-300, 1e-170, 1e170, 1e290])
def test_the_square_of_the_gradient_may_leave_the_range(scale, start):
    run = Minimisation(lambda x: scale * (x - 1).square().sum(), [start, 2 * start])
    run.run(10)
    assert torch.allclose(run.theta, torch.ones(2, dtype=DOUBLE), atol=1e-6)


@pytest.mark.parametrize("scale", [5e-324, 1e-310])
def test_at_the_end_of_the_range_statuses_are_honest(scale):
    run = Minimisation(lambda x: 1.0 + scale * (x - 1).square().sum(), [3.0])
    assert run.run(5) <= 5
    assert run.report.status in ENDS
    assert torch.equal(run.theta, torch.tensor([3.0], dtype=DOUBLE))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_only_too_far(bad):
    """Σ x − 0.01 log x, which is ``bad`` from x = 0 on."""

    def function(x):
        inside = bool((x > 0).all())
        return (x - 0.01 * x.log()).sum() if inside else x.sum() * bad

    run = Minimisation(function, [1.0, 0.5])
    run.run(40)
    assert all(bool((theta > 0).all()) for theta, _, _ in run.path)
    assert any(bool((theta <= 0).any()) for theta in run.visited)
    assert torch.allclose(run.theta, torch.full((2,), 0.01, dtype=DOUBLE), atol=1e-6)


def test_where_every_other_point_is_bad_nothing_moves():
    start = torch.tensor([1.0, 2.0], dtype=DOUBLE)
    run = Minimisation(lambda x: x.sum() if torch.equal(x, start) else x.sum() * math.nan, start)
    assert run.step() is OptimizerStatus.NONFINITE_LOSS
    assert torch.equal(run.theta, start)


@pytest.mark.parametrize("budget", [1, 3, 10])
@pytest.mark.parametrize("number", [3, 4, 21, 35])
def test_evaluations_are_bounded_and_counted(number, budget):
    """The closure's own, and a probe and a search along d and once more along −g."""
    problem = PROBLEMS[number - 1]
    run = Minimisation(problem.objective, problem.start, max_evaluations=budget)
    for _ in range(40):
        before = len(run.visited)
        run.step()
        assert run.report.evaluations == len(run.visited) - before <= 2 * (budget + 1) + 1


def test_no_step_raises_the_loss_by_more_than_the_approximation_allows():
    run = Minimisation(rosenbrock, [-1.2, 1.0, -1.2, 1.0, 0.5])
    run.run(300)
    losses = [report.loss for _, _, report in run.path]
    assert all(report.actual_reduction >= -EPSILON * report.loss for _, _, report in run.path)
    assert losses[-1] < 1e-12 * losses[0]


def test_lr_scales_the_length_that_a_search_tries_first():
    tried = []
    for lr in (1.0, 0.5, 0.25):
        run = Minimisation(rosenbrock, [-1.2, 1.0], lr=lr)
        run.step()
        start, first = run.visited[0], run.visited[1]
        tried.append(float((first - start).norm()))
    assert tried == pytest.approx([tried[0], tried[0] / 2, tried[0] / 4])
    # A hundredth of the largest parameter, I0.
    run = Minimisation(rosenbrock, [-1.2, 1.0])
    run.step()
    assert float((run.visited[1] - run.visited[0]).abs().max()) == pytest.approx(0.012)


def test_float32_goes_as_far_as_its_rounding():
    run = Minimisation(rosenbrock, [-1.2, 1.0], dtype=torch.float32)
    run.run(100)
    assert run.report.status in ENDS
    assert float((run.theta - 1).abs().max()) < 1e-3


# Problem 10 has a valley too narrow for gradients alone, as SciPy's "CG" finds too.
QUICK = [2, 5, 6, 9, 12, 16, 26, 27, 29, 30, 32, 33, 35]
SCALES = [1e-12, 1.0, 1e12]


def solved(problem, x):
    value = float(problem.objective(x))
    return any(
        value == pytest.approx(m, rel=1e-6, abs=1e-12 if m == 0 else 0) for m in problem.minima
    )


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("number", QUICK)
def test_reaches_a_listed_minimum_in_any_unit(number, scale):
    problem = PROBLEMS[number - 1]
    run = Minimisation(lambda x: scale * problem.objective(x), problem.start)
    run.run(200, done=lambda x: solved(problem, x))
    assert run.report.status is OptimizerStatus.ACCEPTED
    assert solved(problem, run.theta)


@pytest.mark.slow
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: f"{p.number} {p.name}")
def test_is_honest_about_every_problem(problem, scale):
    """An end that is called a minimum is one; otherwise the loss is still on its way down."""
    run = Minimisation(lambda x: scale * problem.objective(x), problem.start)
    run.run(1500, done=lambda x: solved(problem, x))
    losses = [report.loss for _, _, report in run.path]
    assert run.report.status in (OptimizerStatus.ACCEPTED, *ENDS)
    assert solved(problem, run.theta) or run.report.status is OptimizerStatus.ACCEPTED
    assert losses[-1] <= min(losses) * (1 + 1e-3)
    assert solved(problem, run.theta) or problem.number in (10, 11, 17, 22)
