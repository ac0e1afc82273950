"""Steps in a trust region against dense algebra, whichever solver and whichever closure."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from torch import nn
from torch.autograd.functional import jacobian
from torch.nn import functional as F

from bench.problems.more_garbow_hillstrom import PROBLEMS
from natgrad.optim import LevenbergMarquardt, StepStatus
from natgrad.testing.networks import make_network

SEEDS = st.integers(0, 2**31 - 1)
DOUBLE = torch.float64
MATRIX_METHODS = ["dense", "sample_space"]
METHODS = [*MATRIX_METHODS, "cg"]
SHAPES = [(12, 5), (5, 12), (8, 8)]


def randn(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=DOUBLE)


class Fit:
    """Residuals of one unknown vector; ``path`` holds θ before every step."""

    def __init__(self, residuals, start, **settings):
        self.residuals = residuals
        self.x = start.clone().requires_grad_()
        if "jacobian" in settings:
            settings["jacobian"] = lambda given=settings["jacobian"]: given(self.theta)
        self.optimizer = LevenbergMarquardt([self.x], **settings)
        self.path = [self.theta]

    @property
    def theta(self):
        return self.x.detach().clone()

    @property
    def report(self):
        return self.optimizer.last_step

    def step(self):
        """The step taken."""
        self.optimizer.step(lambda: self.residuals(self.x))
        self.path.append(self.theta)
        return self.path[-1] - self.path[-2]

    def run(self, steps, done=lambda x: False):
        for _ in range(steps):
            self.step()
            if self.report.status is not StepStatus.ACCEPTED or done(self.theta):
                break
        return torch.stack(self.path)


def curved(m, n, seed=0, bend=0.3):
    """A x − y + bend sin(B x), and a start."""
    generator = torch.Generator().manual_seed(seed)
    A, B = randn(generator, m, n), randn(generator, m, n)
    y, start = randn(generator, m), randn(generator, n)
    return (lambda x: A @ x - y + bend * torch.sin(B @ x)), start


def bent(m, n, seed=0):
    """The same with squares: residuals that are quadratic."""
    generator = torch.Generator().manual_seed(seed)
    A, B = randn(generator, m, n), randn(generator, m, n)
    y, start = randn(generator, m), randn(generator, n)
    return (lambda x: A @ x - y + 0.1 * (B @ x) ** 2), start


def damped(J, r, damping, scale=None):
    """−(JᵀJ + λ D²)⁻¹ Jᵀr."""
    D = torch.ones(J.shape[1], dtype=DOUBLE) if scale is None else scale
    return -torch.linalg.solve(J.mT @ J + damping * torch.diag(D**2), J.mT @ r)


def within(J, r, damping, radius, scale=None):
    """(s, μ), the minimiser of ½‖r + J s‖² + ½ λ‖D s‖² over ‖D s‖ <= radius."""
    D = torch.ones(J.shape[1], dtype=DOUBLE) if scale is None else scale

    def excess(log_shift):
        return float((D * damped(J, r, damping + math.exp(log_shift), D)).norm()) - radius

    if damping > 0 and float((D * damped(J, r, damping, D)).norm()) <= radius:
        return damped(J, r, damping, D), 0.0
    shift = math.exp(brentq(excess, -25, 25, xtol=1e-14, rtol=1e-14))
    return damped(J, r, damping + shift, D), shift


def second_derivative(residuals, theta, s):
    """d²/dt² r(θ + t s) at 0."""

    def along(t):
        return residuals(theta + t * s)

    def slope(t):
        return jacobian(along, t, create_graph=True)

    return jacobian(slope, torch.zeros((), dtype=DOUBLE))


def close(found, expected, tolerance=1e-8):
    assert float((found - expected).norm()) <= tolerance * float(expected.norm())


@pytest.mark.parametrize("damping", [1e-3, 1.0])
@pytest.mark.parametrize("radius", [0.01, 0.3, 100.0, math.inf])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_method_takes_the_step_of_dense_algebra(shape, radius, damping):
    """Steihaug's path is another one where it ends on the boundary, and no shorter."""
    residuals, start = curved(*shape, bend=1e-3)
    J, r = jacobian(residuals, start), residuals(start)
    expected, multiplier = within(J, r, damping, radius)
    for method in METHODS:
        fit = Fit(residuals, start, radius=radius, damping=damping, method=method, rtol=1e-12)
        s = fit.step()
        assert (fit.report.radius, fit.report.solver) == (radius, method)
        if method == "cg" and multiplier > 0:
            assert float(s.norm()) == pytest.approx(radius)
        else:
            close(s, expected, 1e-7)
        predicted = -float((r @ J) @ s + (J @ s) @ (J @ s) / 2)
        assert fit.report.predicted_reduction == pytest.approx(predicted, rel=1e-9)
        actual = float(r @ r - residuals(fit.theta) @ residuals(fit.theta)) / 2
        assert fit.report.actual_reduction == pytest.approx(actual, rel=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_without_damping_the_step_is_the_shortest_least_squares_solution(shape):
    residuals, start = curved(*shape, bend=1e-3)
    expected = -torch.linalg.pinv(jacobian(residuals, start)) @ residuals(start)
    for method in METHODS:
        fit = Fit(residuals, start, radius=math.inf, method=method, rtol=1e-12)
        close(fit.step(), expected, 1e-6)


LOSSES = {
    "mean": lambda y, t: F.mse_loss(y, t),
    "sum": lambda y, t: F.mse_loss(y, t, reduction="sum"),
    "half of the mean": lambda y, t: F.mse_loss(y, t) / 2,
    "half of the sum": lambda y, t: F.mse_loss(y, t, reduction="sum") / 2,
}


def network_and_targets(seed=0):
    generator = torch.Generator().manual_seed(seed)
    model, x = make_network("mlp", generator)
    x = randn(generator, 8, 3)
    return model, x, randn(generator, 8, 3)


def outputs_along(model, optimizer, closure, x, steps=5):
    found = []
    for _ in range(steps):
        optimizer.step(closure)
        found.append(model(x).detach())
    return torch.stack(found)


@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("settings", [{}, {"radius": math.inf, "damping": 0.3, "momentum": 0.5}])
def test_the_standard_closure_takes_the_steps_of_the_residuals(settings, name, batches):
    """Halves of a mean accumulate to the mean, halves of a sum to the sum."""
    model, x, y = network_and_targets()
    optimizer = LevenbergMarquardt(model, **settings)
    share = 1 / batches if "mean" in name else 1.0

    def closure():
        optimizer.zero_grad()
        total = torch.zeros((), dtype=DOUBLE)
        for inputs, targets in zip(x.chunk(batches), y.chunk(batches), strict=True):
            loss = share * LOSSES[name](model(inputs), targets)
            loss.backward()
            total += loss.detach()
        return total

    other, _, _ = network_and_targets()
    by_residuals = LevenbergMarquardt(other.parameters(), **settings)
    factor = math.sqrt(2 * float(LOSSES[name](y, y - 1)) / y.numel())
    found = outputs_along(model, optimizer, closure, x)
    expected = outputs_along(
        other, by_residuals, lambda: factor * (other(x) - y).flatten(), x
    )  # fmt: skip
    close(found, expected, 1e-7)
    assert optimizer.last_step.loss == pytest.approx(by_residuals.last_step.loss, rel=1e-7)


@pytest.mark.parametrize(
    "loss",
    [
        F.l1_loss,
        lambda y, t: F.huber_loss(y, t, delta=0.5),
        lambda y, t: F.smooth_l1_loss(y, t, beta=0.5),
        lambda y, t: (y - t).pow(4).mean(),
        lambda y, t: F.mse_loss(y, t) + 0.1 * y.abs().mean(),
    ],
    ids=["L1", "Huber", "smooth L1", "fourth power", "another term"],
)
def test_a_loss_that_is_no_squared_error_is_refused(loss):
    model, x, y = network_and_targets()
    optimizer = LevenbergMarquardt(model)
    before = [p.detach().clone() for p in model.parameters()]

    def closure():
        optimizer.zero_grad()
        value = loss(model(x), y)
        value.backward()
        return value

    with pytest.raises(ValueError, match="return the residuals themselves"):
        optimizer.step(closure)
    assert all(map(torch.equal, before, (p.detach() for p in model.parameters())))


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_without_a_radius_it_is_spring(shape, method, momentum):
    """s = μφ − Jᵀ (J Jᵀ + λI)⁻¹ (r + μ J φ): Goldshlager et al., equation 16, for our sign of r."""
    residuals, start = curved(*shape)
    damping = 5.0
    fit = Fit(
        residuals, start, radius=math.inf, damping=damping, momentum=momentum, method=method,
        rtol=1e-12,
    )  # fmt: skip
    last = torch.zeros_like(start)
    for _ in range(5):
        before = fit.theta
        J, r = jacobian(residuals, before), residuals(before)
        s = fit.step()
        assert (fit.report.status, fit.report.radius) == (StepStatus.ACCEPTED, math.inf)
        prior = momentum * last
        kernel = J @ J.mT + damping * torch.eye(len(r), dtype=DOUBLE)
        close(s, prior - J.mT @ torch.linalg.solve(kernel, r + J @ prior))
        # The proximal problem, ½‖r + J s‖² + ½ λ‖s − μφ‖², by its normal equations.
        normal = J.mT @ (J @ s + r) + damping * (s - prior)
        assert float(normal.norm()) <= 1e-9 * float((J.mT @ r).norm())
        last = s


def units(n):
    return torch.logspace(-3, 3, n, dtype=DOUBLE)


@pytest.mark.parametrize("given", [{}, {"acceleration": 0.75}, {"damping": 0.1}])
@pytest.mark.parametrize("method", MATRIX_METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_measured_by_the_columns_rescaled_parameters_change_nothing(shape, method, given):
    residuals, start = curved(*shape)
    D = units(shape[1])

    def paths(**settings):
        plain = Fit(residuals, start, method=method, **given, **settings).run(6)
        other = Fit(lambda x: residuals(D * x), start / D, method=method, **given, **settings)
        rescaled = D * other.run(6)
        steps = min(len(plain), len(rescaled))
        return plain[:steps], rescaled[:steps]

    close(*paths(scaled=True), 1e-6)
    plain, rescaled = paths(scaled=False)
    assert float((plain - rescaled).norm()) > 1e-3 * float(plain.norm())


@pytest.mark.parametrize("scaled", [False, True])
def test_the_radius_is_measured_by_the_columns(scaled):
    residuals, start = curved(12, 5)
    J, r = jacobian(residuals, start), residuals(start)
    scale = J.norm(dim=0) if scaled else None
    fit = Fit(residuals, start, radius=0.2, scaled=scaled)
    close(fit.step(), within(J, r, 0.0, 0.2, scale)[0])


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("radius", [0.1, math.inf])
@pytest.mark.parametrize("method", MATRIX_METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_acceleration_adds_half_the_second_order_term(shape, method, radius, scaled):
    """−½ (JᵀJ + (λ + μ) D²)⁻¹ Jᵀr″: exactly for quadratic residuals, else to the probe's length."""
    for make, tolerance in ((bent, 1e-7), (curved, 0.2)):
        residuals, start = make(*shape)
        J, r = jacobian(residuals, start), residuals(start)
        D = J.norm(dim=0) if scaled else None
        damping = 2.0
        s, multiplier = within(J, r, damping, radius, D)
        half = damped(J, second_derivative(residuals, start, s), damping + multiplier, D) / 2
        given = {"radius": radius, "damping": damping, "method": method, "scaled": scaled}
        plain = Fit(residuals, start, **given)
        fit = Fit(residuals, start, acceleration=1e3, **given)
        close(plain.step(), s)
        close(fit.step() - s, half, tolerance)
        assert fit.report.radius == plain.report.radius == radius
        assert fit.report.evaluations == plain.report.evaluations + 1


def test_acceleration_that_is_too_long_is_left_out():
    residuals, start = bent(12, 5)
    given = {"radius": math.inf, "damping": 2.0}
    plain = Fit(residuals, start, **given).step()
    J, r = jacobian(residuals, start), residuals(start)
    s = damped(J, r, 2.0)
    a = damped(J, second_derivative(residuals, start, s), 2.0)
    share = float(a.norm() / s.norm())
    assert torch.equal(Fit(residuals, start, acceleration=0.99 * share, **given).step(), plain)
    close(Fit(residuals, start, acceleration=1.01 * share, **given).step(), s + a / 2)


@pytest.mark.parametrize("given", [{}, {"scaled": True, "acceleration": 0.75}, {"method": "cg"}])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_jacobian_of_the_callers_gives_the_same_path(shape, given):
    residuals, start = curved(*shape)
    asked = []

    def own(theta):
        """By hand, with gradients as the caller left them enabled."""
        asked.append(theta)
        theta = theta.requires_grad_()
        rows = residuals(theta)
        return torch.stack([torch.autograd.grad(r, theta, retain_graph=True)[0] for r in rows])

    fit = Fit(residuals, start, jacobian=own, **given)
    plain, path = Fit(residuals, start, **given).run(5), fit.run(5)
    close(path, plain)
    assert len(asked) == len(path) - 1


def test_a_jacobian_of_another_shape_or_dtype_is_refused():
    residuals, start = curved(12, 5)
    for wrong in (torch.zeros(5, 12).double(), torch.zeros(12, 5), torch.zeros(60).double()):
        fit = Fit(residuals, start, jacobian=lambda theta, wrong=wrong: wrong)
        with pytest.raises(ValueError, match=r"must return \(12, 5\) of torch.float64"):
            fit.step()
        assert torch.equal(fit.theta, start)


@pytest.mark.parametrize(
    ("m", "n", "given", "expected"),
    [
        (7, 5, False, "dense"),
        (5, 5, False, "dense"),
        (5, 7, False, "sample_space"),
        (300, 256, False, "dense"),
        (256, 300, False, "sample_space"),
        (300, 257, False, "cg"),
        (257, 300, False, "cg"),
        (300, 257, True, "dense"),
        (257, 300, True, "sample_space"),
    ],
)
def test_the_sizes_choose_the_method(m, n, given, expected):
    A = torch.eye(max(m, n), dtype=DOUBLE)[:m, :n]
    settings = {"jacobian": lambda theta: A} if given else {}
    fit = Fit(lambda x: A @ x - 1, torch.zeros(n, dtype=DOUBLE), radius=math.inf, **settings)
    fit.step()
    assert fit.report.solver == expected
    close(fit.theta, A.mT @ torch.ones(m, dtype=DOUBLE), 1e-6)


@settings(max_examples=10)
@given(SEEDS, st.sampled_from(SHAPES), st.sampled_from(METHODS))
def test_no_step_raises_the_loss_and_the_radius_follows_the_ratio(seed, shape, method):
    residuals, start = curved(*shape, seed=seed, bend=3.0)
    fit = Fit(residuals, start, method=method)
    for _ in range(10):
        length = float(fit.step().norm())
        report, group = fit.report, fit.optimizer.param_groups[0]
        if report.status is not StepStatus.ACCEPTED:
            break
        r = residuals(fit.theta)
        assert report.loss - report.actual_reduction == pytest.approx(float(r @ r) / 2)
        assert report.actual_reduction >= -1e-12 * report.loss
        assert length <= report.radius * (1 + 1e-9)
        ratio = report.actual_reduction / report.predicted_reduction
        if ratio < 0.25 - 1e-6:
            assert group["radius"] == report.radius / 4
        elif ratio < 0.75 - 1e-6:
            assert group["radius"] == report.radius
        elif length < report.radius * (1 - 1e-6):
            assert group["radius"] == report.radius
        elif ratio > 0.75 + 1e-6:
            assert group["radius"] == 2 * report.radius


# Valleys, bad scales, singular minima, local minima, minima that are not 0, more unknowns.
QUICK = [1, 3, 4, 7, 8, 13, 15, 21, 25, 31]
SCALES = [1e-12, 1.0, 1e12]


def solved(problem, x):
    """To the digits that the bench asks for."""
    value = float(problem.objective(x))
    return any(
        value == pytest.approx(m, rel=1e-4, abs=1e-12 if m == 0 else 0) for m in problem.minima
    )


def solves(problem, scale):
    fit = Fit(lambda x: math.sqrt(scale) * problem.residuals(x), problem.start)
    fit.run(300, done=lambda x: solved(problem, x))
    return solved(problem, fit.theta)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("number", QUICK)
def test_reaches_a_listed_minimum_in_any_unit(number, scale):
    assert solves(PROBLEMS[number - 1], scale)


@pytest.mark.slow
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: f"{p.number} {p.name}")
def test_reaches_a_listed_minimum_of_every_problem(problem, scale):
    assert solves(problem, scale)


@pytest.mark.parametrize("power", [-40, 40])
@pytest.mark.parametrize("given", [{}, {"scaled": True, "acceleration": 0.75}, {"method": "cg"}])
@pytest.mark.parametrize("number", QUICK)
def test_powers_of_two_in_the_objective_change_no_bit(number, given, power):
    problem = PROBLEMS[number - 1]
    plain = Fit(problem.residuals, problem.start, **given).run(20)
    scaled = Fit(lambda x: 2.0 ** (power // 2) * problem.residuals(x), problem.start, **given)
    assert torch.equal(plain, scaled.run(20))


def test_a_module_may_hold_the_parameters():
    """Residuals of a model, of which one layer is frozen."""
    model, x, y = network_and_targets()
    assert isinstance(model.first, nn.Linear)
    model.first.requires_grad_(False)
    frozen = model.first.weight.detach().clone()
    optimizer = LevenbergMarquardt(model.parameters(), radius=math.inf)
    for _ in range(2):
        optimizer.step(lambda: (model(x) - y).flatten())
    # Linear least squares in the layer that is left.
    features = torch.cat([model.first(x).tanh(), torch.ones(8, 1).double()], 1).detach()
    best = torch.linalg.lstsq(features, y).solution
    torch.testing.assert_close(model.second.weight.detach().mT, best[:-1])
    assert torch.equal(model.first.weight.detach(), frozen)
