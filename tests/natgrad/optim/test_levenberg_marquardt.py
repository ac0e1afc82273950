"""Steps of least squares, beside dense algebra and second derivatives by autograd."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd.functional import jacobian
from torch.nn import functional as F

from bench.problems.more_garbow_hillstrom import PROBLEMS
from natgrad.flat import flatten
from natgrad.optim import LevenbergMarquardt, OptimizerStatus, levenberg_marquardt
from natgrad.solvers import Status
from natgrad.testing.networks import make_network
from natgrad.trust_region import update_radius

SEEDS = st.integers(0, 2**31 - 1)
DOUBLE, INF = torch.float64, math.inf
METHODS = ("dense", "sample_space", "cg")
DIRECT = METHODS[:2]
SHAPES = [(12, 5), (5, 5), (5, 12)]


def random_(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=DOUBLE)


class Minimisation:
    """½‖r‖² from a start, by a closure that returns r; ``step()`` gives the report."""

    def __init__(self, residuals, start, dtype=DOUBLE, **given):
        self.residuals = residuals
        self.x = torch.as_tensor(start, dtype=dtype).clone().requires_grad_()
        self.optimizer = LevenbergMarquardt([self.x], **given)

    @property
    def theta(self):
        return self.x.detach().clone()

    @property
    def radius(self):
        return self.optimizer.param_groups[0]["radius"]

    def step(self):
        self.optimizer.step(lambda: self.residuals(self.x))
        return self.optimizer.last_step

    def run(self, steps, done=lambda x: False):
        for _ in range(steps):
            if self.step().status is not OptimizerStatus.ACCEPTED or done(self.theta):
                break
        return self.optimizer.last_step

    def path(self, steps):
        found = []
        for _ in range(steps):
            self.step()
            found.append(self.theta)
        return torch.stack(found)


def curved(m, n, seed, curvature=0.3):
    """θ ↦ Aθ − b + c tanh(Bθ), of random numbers."""
    A, B, b = (random_(m, k, seed=seed + i) for i, k in enumerate((n, n, 1)))
    return lambda x: A @ x - b[:, 0] + curvature * (B @ x).tanh()


def linearised(residuals, theta):
    return residuals(theta).detach(), jacobian(residuals, theta)


def damped(J, damping):
    return J.mT @ J + damping * torch.eye(J.shape[1], dtype=DOUBLE)


def rosenbrock(x):
    return torch.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])


# --- one step


@pytest.mark.parametrize("damping", [1e-6, 1e-2, 1.0, 100.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_methods_take_the_damped_step(shape: tuple[int, int], damping):
    """s = −(JᵀJ + λ I)⁻¹ Jᵀr, whatever solves it."""
    residuals, start = curved(*shape, seed=1), 0.1 * random_(shape[1], seed=7)
    r, J = linearised(residuals, start)
    s = -torch.linalg.solve(damped(J, damping), J.mT @ r)
    for method in METHODS:
        run = Minimisation(
            residuals, start, solver=method, radius=INF, damping=damping, rtol=1e-13,
            accept_ratio=-INF,
        )  # fmt: skip
        report = run.step()
        assert (report.status, report.solver) == (OptimizerStatus.ACCEPTED, method)
        torch.testing.assert_close(run.theta - start, s, rtol=1e-7, atol=1e-9)
        predicted = float(r @ r - (r + J @ s).square().sum()) / 2
        assert report.predicted_reduction == pytest.approx(predicted, rel=1e-7)
        after = residuals(run.theta)
        assert report.actual_reduction == pytest.approx(float(r @ r - after @ after) / 2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_without_damping_it_is_the_shortest_solution(shape: tuple[int, int]):
    residuals, start = curved(*shape, seed=1), random_(shape[1], seed=7)
    r, J = linearised(residuals, start)
    for method in METHODS:
        run = Minimisation(
            residuals, start, solver=method, radius=INF, rtol=1e-13, accept_ratio=-INF
        )
        run.step()
        torch.testing.assert_close(
            run.theta - start, -torch.linalg.pinv(J) @ r, rtol=1e-6, atol=1e-9
        )


@settings(max_examples=20)
@given(st.sampled_from(SHAPES), SEEDS, st.floats(-3, 1), st.sampled_from([0.0, 1e-3, 0.3]))
def test_within_a_radius_the_step_satisfies_the_conditions_of_kkt(
    shape: tuple[int, int], seed, log10_radius, damping
):
    """(JᵀJ + (λ + μ) I) s = −Jᵀr with μ >= 0, ‖s‖ <= Δ and μ (Δ − ‖s‖) = 0."""
    residuals, start = curved(*shape, seed=seed), random_(shape[1], seed=seed + 7)
    r, J = linearised(residuals, start)
    steps = []
    for method in METHODS:
        run = Minimisation(
            residuals, start, solver=method, radius=10.0**log10_radius, damping=damping, rtol=1e-13
        )
        report = run.step()
        assert report.status is OptimizerStatus.ACCEPTED
        s, scale = run.theta - start, float((J.mT @ r).norm())
        steps.append(s)
        assert float(s.norm()) <= report.radius * (1 + 1e-9)
        if method == "cg":
            # Steihaug's: the same inside, on the boundary at least half as good (Yuan 2000).
            if report.solver_status is Status.CONVERGED:
                torch.testing.assert_close(s, steps[0], rtol=1e-6, atol=1e-8)
            continue
        rest = -J.mT @ r - damped(J, damping) @ s
        multiplier = float(rest @ s / (s @ s))
        assert multiplier >= -1e-8 * scale / float(s.norm())
        assert float((rest - multiplier * s).norm()) <= 1e-7 * scale
        if report.solver_status is Status.BOUNDARY:
            assert float(s.norm()) == pytest.approx(report.radius)
        else:
            assert multiplier == pytest.approx(0.0, abs=1e-7 * scale / float(s.norm()))
    torch.testing.assert_close(steps[1], steps[0], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_accepted_steps_keep_what_the_model_promises_and_the_radius_follows(method):
    run = Minimisation(rosenbrock, [-1.2, 1.0], solver=method, accept_ratio=0.2)
    for _ in range(12):
        theta = run.theta
        report = run.step()
        r, J = linearised(rosenbrock, theta)
        s, after = run.theta - theta, rosenbrock(run.theta)
        assert report.status is OptimizerStatus.ACCEPTED
        predicted = float(r @ r - (r + J @ s).square().sum()) / 2
        ratio = float(r @ r - after @ after) / 2 / predicted
        assert report.loss == pytest.approx(float(r @ r) / 2)
        assert ratio > 0.2
        assert ratio == pytest.approx(report.actual_reduction / report.predicted_reduction)
        inside = report.solver_status in (Status.CONVERGED, Status.STAGNATED)
        assert run.radius == pytest.approx(
            update_radius(report.radius, ratio, at_boundary=not inside)
        )


def test_the_first_radius_is_the_length_of_the_cauchy_step():
    r, J = linearised(rosenbrock, torch.tensor([-1.2, 1.0], dtype=DOUBLE))
    g = J.mT @ r
    cauchy = float(g.norm() ** 3 / (J @ g).square().sum())
    assert Minimisation(rosenbrock, [-1.2, 1.0]).step().radius == pytest.approx(cauchy)
    # Where J g = 0 it is ‖θ‖, and 1 where that is 0 too.
    flat = torch.zeros(2, 2, dtype=DOUBLE)
    for start, radius in (([3.0, 4.0], 5.0), ([0.0, 0.0], 1.0)):
        found = levenberg_marquardt.cauchy_length(  # type: ignore[attr-defined]
            levenberg_marquardt.Linearised(torch.ones(2, dtype=DOUBLE), flat, None, 2),  # type: ignore[attr-defined]
            torch.ones(2, dtype=DOUBLE), torch.tensor(start, dtype=DOUBLE),
        )  # fmt: skip
        assert found == radius


@pytest.mark.parametrize(
    ("m", "n", "given_matrix", "solver"),
    [
        (6, 5, False, "dense"), (5, 5, False, "dense"), (5, 6, False, "sample_space"),
        (256, 300, False, "sample_space"), (300, 256, False, "dense"), (257, 257, False, "cg"),
        (257, 300, False, "cg"), (257, 257, True, "dense"), (257, 300, True, "sample_space"),
    ],
)  # fmt: skip
def test_the_method_goes_by_the_sizes(m, n, given_matrix, solver):
    def residuals(x):
        return torch.nn.functional.pad(x, (0, max(m - n, 0)))[:m] - 1

    J = torch.eye(m, n, dtype=DOUBLE)
    known = {"jacobian": lambda: J} if given_matrix else {}
    run = Minimisation(residuals, torch.zeros(n), radius=INF, **known)
    report = run.step()
    assert report.solver == solver
    expected = torch.zeros(n, dtype=DOUBLE)
    expected[: min(m, n)] = 1
    torch.testing.assert_close(run.theta, expected)


# --- the closures


def squared_errors(samples=(7,), seed=0):
    """A network, its batches and targets."""
    generator = torch.Generator().manual_seed(seed)
    model, _ = make_network("mlp", generator)
    batches = [
        (
            torch.randn(count, 3, generator=generator, dtype=DOUBLE),
            torch.randn(count, 3, generator=generator, dtype=DOUBLE),
        )
        for count in samples
    ]
    return model, batches


# c for a batch of n samples of three outputs, of a total.
SUMS = {
    "mean": lambda n, total: 1 / (3 * n),
    "sum": lambda n, total: 1.0,
    "mean over samples": lambda n, total: 1 / n,
    "mean over all batches": lambda n, total: 1 / (3 * total),
    "mean over all samples": lambda n, total: 1 / total,
}


@pytest.mark.parametrize("half", [1.0, 0.5])
@pytest.mark.parametrize("kind", SUMS)
@pytest.mark.parametrize("samples", [(7,), (5, 5), (6, 3, 1)], ids=str)
def test_the_standard_closure_takes_the_path_of_the_residuals(samples, kind, half):
    """loss = Σ over batches of c Σ (y − t)², so that r = √(2 c) (y − t)."""
    total, c_of = sum(samples), SUMS[kind]
    (model, batches), (twin, _) = squared_errors(samples), squared_errors(samples)
    standard, direct = LevenbergMarquardt(model), LevenbergMarquardt(twin.parameters())

    def closure():
        standard.zero_grad()
        losses = []
        for x, t in batches:  # gradients are accumulated
            losses.append(half * c_of(len(x), total) * F.mse_loss(model(x), t, reduction="sum"))
            losses[-1].backward()
        return sum(loss.detach() for loss in losses)

    def residuals():
        return torch.cat(
            [(2 * half * c_of(len(x), total)) ** 0.5 * (twin(x) - t).flatten() for x, t in batches]
        )

    for _ in range(4):
        assert float(standard.step(closure)) == pytest.approx(float(direct.step(residuals)))
        left, right = standard.last_step, direct.last_step
        assert left is not None
        assert right is not None
        assert left.status is right.status is OptimizerStatus.ACCEPTED
        assert left.radius == pytest.approx(right.radius, rel=1e-7)
        assert left.predicted_reduction == pytest.approx(right.predicted_reduction, rel=1e-7)
        torch.testing.assert_close(
            flatten(model.parameters()), flatten(twin.parameters()), rtol=1e-7, atol=1e-9
        )


def decayed(model, outputs, targets):
    return F.mse_loss(outputs, targets) + 1e-2 * sum(p.square().sum() for p in model.parameters())


LOSSES = {
    "cross-entropy": lambda _, y, t: F.cross_entropy(y, t.softmax(1)),
    "absolute errors": lambda _, y, t: F.l1_loss(y, t),
    "Huber's": lambda _, y, t: F.huber_loss(y, t),
    "a third": lambda _, y, t: F.mse_loss(y, t) / 3,
    "weights": lambda _, y, t: (torch.arange(1, 4) * (y - t) ** 2).mean(),
    "weight decay": decayed,
    "a root": lambda _, y, t: F.mse_loss(y, t).sqrt(),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_another_loss_is_refused(kind):
    model, [(x, t)] = squared_errors()
    optimizer = LevenbergMarquardt(model)

    def closure():
        optimizer.zero_grad()
        loss = LOSSES[kind](model, model(x), t)
        loss.backward()
        return loss

    before = flatten(model.parameters())
    with pytest.raises(ValueError, match="not that of a sum or mean of squared errors"):
        optimizer.step(closure)
    assert torch.equal(flatten(model.parameters()), before)


@pytest.mark.parametrize("damping", [1e-3, 1.0])
def test_without_a_closure_it_goes_as_far_as_the_damping_allows(damping):
    model, [(x, t)] = squared_errors()
    y, parameters = model(x), list(model.parameters())
    J = torch.stack([
        flatten(torch.autograd.grad(output, parameters, retain_graph=True))
        for output in y.flatten()
    ])  # fmt: skip
    start = flatten(parameters)
    optimizer = LevenbergMarquardt(model, damping=damping, radius=INF)
    F.mse_loss(model(x), t).backward()
    root = (2 / y.numel()) ** 0.5
    J, r = root * J, root * (y - t).detach().flatten()
    optimizer.step()
    s = -torch.linalg.solve(damped(J, damping), J.mT @ r)
    torch.testing.assert_close(flatten(model.parameters()) - start, s, rtol=1e-6, atol=1e-8)


# --- a Jacobian that the caller knows


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_given_jacobian_takes_the_path_of_autograds(shape: tuple[int, int]):
    residuals, start = curved(*shape, seed=3, curvature=1.0), random_(shape[1], seed=4)
    plain = Minimisation(residuals, start)
    calls = []

    def matrix():
        calls.append(1)
        return jacobian(residuals, run.theta)

    run = Minimisation(residuals, start, jacobian=matrix)

    torch.testing.assert_close(run.path(6), plain.path(6), rtol=1e-8, atol=1e-10)
    assert len(calls) == 6  # one a step, however many candidates


@pytest.mark.parametrize(
    ("matrix", "got"),
    [
        (torch.eye(2, 3, dtype=DOUBLE), r"\(2, 2\) .* got \(2, 3\)"),
        (torch.ones(4, dtype=DOUBLE), r"got \(4,\)"),
        (torch.eye(2), "float32"),
    ],
)
def test_a_jacobian_of_another_shape_is_refused(matrix, got):
    run = Minimisation(rosenbrock, [-1.2, 1.0], jacobian=lambda: matrix)
    with pytest.raises(ValueError, match=got):
        run.step()
    assert torch.equal(run.theta, torch.tensor([-1.2, 1.0], dtype=DOUBLE))


def test_a_jacobian_may_be_taken_by_autograd():
    """A step runs without gradients; what it asks its caller for does not."""
    residuals, start = curved(5, 12, seed=3), random_(12, seed=4)

    def matrix():
        rows = residuals(run.x)
        return torch.stack([torch.autograd.grad(r, run.x, retain_graph=True)[0] for r in rows])

    run = Minimisation(residuals, start, jacobian=matrix)
    expected = Minimisation(residuals, start).path(3)
    torch.testing.assert_close(run.path(3), expected, rtol=1e-8, atol=1e-10)


# --- momentum (SPRING)


@pytest.mark.parametrize("momentum", [0.3, 0.9])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_momentum_is_the_proximal_step_from_the_last_one(shape, method, momentum):
    """Primal (JᵀJ + λ I) s = −Jᵀr + λμφ and dual s = μφ − Jᵀ(JJᵀ + λ I)⁻¹ (r + μJφ)."""
    damping, (m, n) = 0.5, shape
    residuals = curved(m, n, seed=2)
    run = Minimisation(
        residuals, 3 * random_(n, seed=5), solver=method, radius=INF, damping=damping,
        momentum=momentum, rtol=1e-13, accept_ratio=-INF,
    )  # fmt: skip
    phi = torch.zeros(n, dtype=DOUBLE)
    for _ in range(4):
        theta = run.theta
        r, J = linearised(residuals, theta)
        K = J @ J.mT + damping * torch.eye(m, dtype=DOUBLE)
        dual = momentum * phi - J.mT @ torch.linalg.solve(K, r + momentum * J @ phi)
        predicted = float(r @ r - (r + J @ dual).square().sum()) / 2
        if predicted <= 0:  # a step up the model is none
            break
        report = run.step()
        assert report.status is OptimizerStatus.ACCEPTED
        phi, last = run.theta - theta, phi
        torch.testing.assert_close(phi, dual, rtol=1e-6, atol=1e-8)
        primal = -J.mT @ r + damping * momentum * last
        torch.testing.assert_close(damped(J, damping) @ phi, primal, rtol=1e-6, atol=1e-8)
        assert report.predicted_reduction == pytest.approx(predicted, rel=1e-6)


@pytest.mark.parametrize("momentum", [0.5, 0.95])
def test_without_a_closure_momentum_is_carried_whatever_becomes_of_the_loss(momentum):
    model, [(x, t)] = squared_errors()
    optimizer = LevenbergMarquardt(model, radius=INF, damping=0.1, momentum=momentum)
    parameters = list(model.parameters())
    phi = torch.zeros_like(flatten(parameters))
    for _ in range(6):
        theta, y = flatten(parameters), model(x)
        J = torch.stack([
            flatten(torch.autograd.grad(output, parameters, retain_graph=True))
            for output in y.flatten()
        ])  # fmt: skip
        root = (2 / y.numel()) ** 0.5
        J, r, prior = root * J, root * (y - t).detach().flatten(), momentum * phi
        optimizer.zero_grad()
        F.mse_loss(y, t).backward()
        optimizer.step()
        phi = flatten(parameters) - theta
        K = J @ J.mT + 0.1 * torch.eye(len(r), dtype=DOUBLE)
        dual = prior - J.mT @ torch.linalg.solve(K, r + J @ prior)
        torch.testing.assert_close(phi, dual, rtol=1e-6, atol=1e-8)


def test_without_momentum_left_over_it_is_the_plain_step():
    """At the first step, and after one that was refused with it."""
    plain = Minimisation(rosenbrock, [-1.2, 1.0], radius=INF, damping=1e-3)
    run = Minimisation(rosenbrock, [-1.2, 1.0], radius=INF, damping=1e-3, momentum=0.9)
    assert torch.equal(plain.path(1), run.path(1))
    # Of the long first step into the valley, nine tenths more lead far out of it.
    assert run.step().status is OptimizerStatus.ACCEPTED
    plain.step()
    assert torch.equal(plain.theta, run.theta)


@pytest.mark.parametrize("settings", [{}, {"radius": INF, "damping": 1e-3}, {"damping": 1e-2}])
@pytest.mark.parametrize("momentum", [0.5, 0.9])
@pytest.mark.parametrize("number", [1, 5, 7, 25])
def test_momentum_hinders_no_descent(number, momentum, settings):
    problem = PROBLEMS[number - 1]
    run = Minimisation(problem.residuals, problem.start, momentum=momentum, **settings)
    run.run(120, done=lambda x: float(problem.objective(x)) < 1e-12)
    assert run.optimizer.last_step is not None
    assert run.optimizer.last_step.status is OptimizerStatus.ACCEPTED
    assert float(problem.objective(run.theta)) < 1e-12


# --- scaling


@pytest.mark.parametrize("method", DIRECT)
@pytest.mark.parametrize("number", [1, 7, 14, 15])
def test_rescaled_parameters_take_the_same_path(number, method):
    """θ = D ξ for diagonal D of six orders of magnitude."""
    problem = PROBLEMS[number - 1]
    D = torch.logspace(-3, 3, len(problem.start), dtype=DOUBLE).flip(0)

    def paths(steps, **given):
        plain = Minimisation(problem.residuals, problem.start, solver=method, **given)
        run = Minimisation(
            lambda xi: problem.residuals(D * xi), problem.start / D, solver=method, **given
        )
        return plain.path(steps), D * run.path(steps)

    left, right = paths(10, scaled=True)
    torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-8)
    left, right = paths(10)
    assert float((left - right).abs().max()) > 1e-3


def test_the_scale_is_the_largest_norm_that_each_column_has_had():
    run = Minimisation(rosenbrock, [-1.2, 1.0], scaled=True)
    largest = torch.zeros(2, dtype=DOUBLE)
    for _ in range(8):
        _, J = linearised(rosenbrock, run.theta)
        largest = torch.maximum(largest, J.norm(dim=0))
        theta = run.theta
        report = run.step()
        torch.testing.assert_close(run.optimizer.state[run.x]["scale"], largest)
        length = float((largest * (run.theta - theta)).norm())
        assert length <= report.radius * (1 + 1e-9)
        if report.solver_status is Status.BOUNDARY:
            assert length == pytest.approx(report.radius)


def test_a_parameter_without_effect_has_scale_one_and_stays():
    run = Minimisation(lambda x: rosenbrock(x[:2]), [-1.2, 1.0, 3.0], scaled=True)
    run.run(40)
    torch.testing.assert_close(run.theta, torch.tensor([1.0, 1.0, 3.0], dtype=DOUBLE))


# --- geodesic acceleration


def along(residuals, theta, s, order):
    """dᵏ/dtᵏ r(θ + t s) at t = 0 for k = ``order``."""

    def derivative(function):
        return lambda t: jacobian(function, t, create_graph=True)

    function = lambda t: residuals(theta + t * s)  # noqa: E731
    for _ in range(order):
        function = derivative(function)
    return function(torch.zeros((), dtype=DOUBLE)).detach()


def cubic(m, n, seed, third):
    A, B, C = (random_(m, n, seed=seed + i) for i in range(3))
    return lambda x: A @ x + 0.3 * (B @ x) ** 2 + third * (C @ x) ** 3 - 1


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("method", DIRECT)
@pytest.mark.parametrize("third", [0.0, 0.05])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_bend_is_the_second_order_term_of_the_residuals(
    shape: tuple[int, int], third, method, scaled
):
    """Δθ = s − ½ (JᵀJ + (λ + μ) D²)⁻¹ Jᵀ (r″ + h r‴ / 3), h = 0.1 the probe's length."""
    residuals, start = cubic(*shape, seed=5, third=third), 0.1 * random_(shape[1], seed=9)
    given = {"method": method, "damping": 0.3, "radius": 0.3, "scaled": scaled}
    plain = Minimisation(residuals, start, accept_ratio=-INF, **given)
    report = plain.step()
    s, (_, J) = plain.theta - start, linearised(residuals, start)
    D = J.norm(dim=0) if scaled else torch.ones(shape[1], dtype=DOUBLE)
    rest = -J.mT @ (residuals(start) + J @ s)
    shift = float(rest @ (D**2 * s) / (D**2 * s).square().sum())  # λ + μ
    second = along(residuals, start, s, 2)
    second = second + levenberg_marquardt.PROBE / 3 * along(residuals, start, s, 3)
    bend = -0.5 * torch.linalg.solve(J.mT @ J + torch.diag(shift * D**2), J.mT @ second)
    trust = float((2 * D * bend).norm() / (D * s).norm())
    for limit, expected in ((1.01 * trust, bend), (0.99 * trust, 0 * bend)):
        run = Minimisation(residuals, start, acceleration=limit, accept_ratio=-INF, **given)
        accelerated = run.step()
        torch.testing.assert_close(run.theta - start - s, expected, rtol=1e-6, atol=1e-8)
        assert accelerated.evaluations == report.evaluations + 1
        assert accelerated.predicted_reduction == pytest.approx(report.predicted_reduction)


def test_acceleration_saves_steps_in_a_curved_valley():
    steps = []
    for acceleration in (0.0, 0.75):
        run = Minimisation(rosenbrock, [-1.2, 1.0], acceleration=acceleration)
        count = 0
        while float(rosenbrock(run.theta).square().sum()) > 1e-12:
            assert run.step().status is OptimizerStatus.ACCEPTED
            count += 1
        steps.append(count)
    assert steps[1] < steps[0]


def test_what_needs_the_matrix_says_so():
    for needing in ({"scaled": True}, {"acceleration": 0.75}):
        run = Minimisation(rosenbrock, [-1.2, 1.0], solver="cg", **needing)
        with pytest.raises(ValueError, match=r"give jacobian=\.\.\."):
            run.step()
    model, [(x, t)] = squared_errors()
    optimizer = LevenbergMarquardt(model, acceleration=0.75)

    def closure():
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), t)
        loss.backward()
        return loss

    with pytest.raises(ValueError, match="closure that returns residuals"):
        optimizer.step(closure)


# --- groups, precision


def test_the_model_is_that_of_the_step_with_rates():
    residuals = curved(6, 4, seed=1)
    x, y = (nn.Parameter(random_(2, seed=seed)) for seed in (2, 3))
    theta = torch.cat([x, y]).detach()
    groups = [{"params": [x], "lr": 0.5}, {"params": [y], "lr": 0.25}]
    optimizer = LevenbergMarquardt(groups, radius=INF, damping=0.1)
    optimizer.step(lambda: residuals(torch.cat([x, y])))
    r, J = linearised(residuals, theta)
    s = -torch.linalg.solve(damped(J, 0.1), J.mT @ r)
    d = torch.tensor([0.5, 0.5, 0.25, 0.25], dtype=DOUBLE) * s
    torch.testing.assert_close(torch.cat([x, y]).detach() - theta, d, rtol=1e-8, atol=1e-10)
    predicted = float(r @ r - (r + J @ d).square().sum()) / 2
    assert optimizer.last_step is not None
    assert optimizer.last_step.predicted_reduction == pytest.approx(predicted)


@pytest.mark.parametrize("method", METHODS)
def test_float32_reaches_the_minimum_of_float64(method):
    run = Minimisation(rosenbrock, [-1.2, 1.0], dtype=torch.float32, solver=method)
    run.run(60)
    torch.testing.assert_close(run.theta, torch.ones(2), rtol=0.0, atol=1e-5)


# --- the test problems

QUICK = [1, 2, 4, 5, 7, 8, 11, 13, 16, 17, 19, 24, 26, 27, 31, 33, 35]
SCALES = [1e-12, 1.0, 1e12]


def solved(problem, x):
    value, minima = float(problem.objective(x)), problem.minima
    return any(value == pytest.approx(m, rel=1e-6, abs=1e-12 if m == 0 else 0) for m in minima)


def solve_scaled(problem, scale):
    run = Minimisation(lambda x: scale**0.5 * problem.residuals(x), problem.start)
    report = run.run(300, done=lambda x: solved(problem, x))
    assert report.status is OptimizerStatus.ACCEPTED
    assert solved(problem, run.theta)


@pytest.mark.parametrize("number", QUICK)
def test_reaches_a_listed_minimum_in_any_unit(number):
    for scale in SCALES:
        solve_scaled(PROBLEMS[number - 1], scale)


@pytest.mark.slow
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: f"{p.number} {p.name}")
def test_reaches_a_listed_minimum_of_every_problem(problem, scale):
    solve_scaled(problem, scale)


@pytest.mark.parametrize("power", [-40, 40])
@pytest.mark.parametrize(
    "settings",
    [{}, {"method": "sample_space"}, {"method": "cg"}, {"scaled": True, "acceleration": 0.75}],
    ids=str,
)
def test_powers_of_two_in_the_residuals_change_no_bit(settings, power):
    for number in (1, 3, 10, 17, 19, 35):
        problem = PROBLEMS[number - 1]
        plain = Minimisation(problem.residuals, problem.start, **settings)
        scaled = Minimisation(
            lambda x, p=problem: p.residuals(x) * 2.0**power, problem.start, **settings
        )
        for _ in range(6):
            left, right = plain.step(), scaled.step()
            assert left.status is right.status
            # That of D s where D, the columns' norms, measures it.
            assert right.radius == left.radius * (2.0**power if "scaled" in settings else 1.0)
            assert torch.equal(plain.theta, scaled.theta)


# --- no optimum where the loss descends


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("points", "top"), [(1_000, 1e3), (10_000, 1e3), (10_000, 1e4)])
def test_a_line_through_many_points_is_fitted_in_float32(points, top, method):
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(0, top, points)
    y = 5 + 0.01 * x + 0.1 * torch.randn(points, generator=generator)
    if method == "sample_space" and points > 1_000:
        pytest.skip("its matrix is (m, m)")
    run = Minimisation(lambda p: p[0] + p[1] * x - y, [0.0, 0.0], torch.float32, solver=method)
    for _ in range(20):
        run.step()
    A = torch.stack([torch.ones(points), x], dim=1).double()
    best = torch.linalg.lstsq(A, y.double().unsqueeze(1)).solution[:, 0]

    def loss(p):
        return float((A @ p.double() - y.double()).square().sum()) / 2

    # θ as float32 holds it: eps θᵢ ‖Aᵢ‖ for each, and what the residuals' own rounding moves it by.
    eps = torch.finfo(torch.float32).eps
    rounding = eps * float((best.abs() * A.norm(dim=0)).sum() + y.double().norm())
    assert loss(run.theta) <= loss(best) + rounding**2


def weighted_half(dtype, weight):
    A, x = random_(20, 40, seed=0), random_(40, seed=1)
    A[10:] *= weight
    return A.to(dtype), (A @ x).to(dtype)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("dtype", "weight"),
    [(torch.float32, 1e-2), (torch.float32, 1e-3), (DOUBLE, 1e-6), (DOUBLE, 1e-8)],
)
def test_residuals_of_small_weight_are_fitted_where_parameters_suffice(dtype, weight, method):
    A, b = weighted_half(dtype, weight)
    run = Minimisation(lambda p: A @ p - b, torch.zeros(40), dtype, solver=method)
    run.run(60)
    rest = (A @ run.theta - b)[10:]
    assert float(rest.norm()) <= 1e-3 * float(b[10:].norm())


@settings(max_examples=40)
@given(
    st.sampled_from(SHAPES), SEEDS, st.sampled_from(METHODS),
    st.sampled_from([torch.float32, DOUBLE]), st.floats(0, 8), st.floats(0, 8), st.floats(-30, 10),
)  # fmt: skip
def test_no_optimum_is_claimed_where_a_gradient_step_halves_the_loss(
    shape, seed, method, dtype, columns, rows, log10_radius
):
    m, n = shape
    C = torch.logspace(-rows, rows, m, dtype=DOUBLE).unsqueeze(1) * random_(m, n, seed=seed)
    A = (C * torch.logspace(-columns, columns, n, dtype=DOUBLE)).to(dtype)
    if method == "cg" and dtype == torch.float32:
        A = A / A.abs().amax()
    b = random_(m, seed=seed + 1).to(dtype)
    run = Minimisation(
        lambda p: A @ p - b, torch.zeros(n), dtype, solver=method, radius=10.0**log10_radius
    )
    report = run.run(30)
    if report.status is OptimizerStatus.NO_IMPROVEMENT:
        r = (A @ run.theta - b).double()
        g = A.double().mT @ r
        image = A.double() @ (g / g.norm())
        best = float((g.norm() / image.norm()).square()) / 2  # of the exact Cauchy step
        # r itself, and what another θ of the dtype can make of it, are rounded.
        parts = A.double().abs() @ run.theta.double().abs() + b.double().abs()
        rounding = 2 * torch.finfo(dtype).eps * float(parts.norm())
        assert best <= 0.5 * float(r @ r) / 2 + rounding**2


@pytest.mark.parametrize("ratio", [1e8, 1e13, 1e15])
@pytest.mark.parametrize("method", DIRECT)
def test_columns_of_unlike_norms_are_both_fitted(method, ratio):
    Q, _ = torch.linalg.qr(random_(20, 3, seed=0))
    A, b = Q[:, :2] * torch.tensor([ratio, 1.0], dtype=DOUBLE), Q[:, 0] + 2 * Q[:, 1] + Q[:, 2]
    run = Minimisation(lambda p: A @ p - b, [0.0, 0.0], solver=method)
    run.run(80)
    assert float((A @ run.theta - b).square().sum()) / 2 == pytest.approx(0.5, rel=1e-9)


def test_a_radius_too_small_to_measure_in_is_no_optimum():
    run = Minimisation(rosenbrock, [-1.2, 1.0], radius=1e-40)
    assert run.step().status is OptimizerStatus.ACCEPTED


@pytest.mark.parametrize(("dtype", "start"), [(DOUBLE, 10.0), (torch.float32, 6.0)], ids=str)
@pytest.mark.parametrize("method", DIRECT)
def test_a_saturated_start_is_no_optimum_and_no_rise_is_accepted(dtype, start, method):
    """There the Gauss-Newton step is 1e8 long, and its decrease near the loss's rounding."""
    run = Minimisation(torch.tanh, [start], dtype, solver=method)
    losses = [start]
    for _ in range(20):
        report = run.step()
        value = float(run.theta.double().tanh().square().sum()) / 2
        assert value <= losses[-1] * (1 + 16 * torch.finfo(dtype).eps)
        losses.append(value)
        if report.status is OptimizerStatus.CONVERGED:
            break
    assert losses[-1] < 1e-6


def test_without_residuals_there_is_nothing_to_do():
    run = Minimisation(lambda x: x[:0], [1.0])
    with pytest.raises(ValueError, match=r"no residuals: .* \(0,\)"):
        run.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_at_the_optimum_of_a_model_the_rounding_of_a_zero_gradient_is_no_other_loss(seed, dtype):
    """Two sums that cancel leave roundings that have nothing to do with each other."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = torch.nn.Linear(3, 2).to(dtype)
    x, t = (torch.randn(200, n, generator=generator, dtype=dtype) for n in (3, 2))
    optimizer = LevenbergMarquardt(model)

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), t)
        loss.backward()
        return loss

    for _ in range(25):
        loss = float(optimizer.step(closure).detach())
    A = torch.cat([x, torch.ones(200, 1, dtype=dtype)], dim=1).double()
    best = A @ torch.linalg.lstsq(A, t.double()).solution
    least = float((best - t).square().mean())
    assert loss <= least * (1 + 200 * torch.finfo(dtype).eps)


def test_the_former_name_of_solver_is_taken_and_may_not_contradict_it():
    x = torch.ones(2, dtype=torch.float64, requires_grad=True)
    steps = []
    for optimizer in (
        LevenbergMarquardt([x], solver="cg"),
        LevenbergMarquardt([x], method="cg"),
        LevenbergMarquardt([x], solver="cg", method="cg"),
    ):
        optimizer.step(lambda: x**2 - 2)
        assert optimizer.last_step is not None
        steps.append(optimizer.last_step.solver)
    assert steps == ["cg"] * 3
    with pytest.raises(ValueError, match="former name"):
        LevenbergMarquardt([x], solver="cg", method="dense")


def test_residuals_may_come_from_parts_of_the_model():
    """The closure calls its layers and never the model itself."""
    x, t = random_(8, 2, seed=0), random_(8, 1, seed=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    optimizer = LevenbergMarquardt(model)
    first, between, last = model
    losses = [float(optimizer.step(lambda: (last(between(first(x))) - t)[:, 0])) for _ in range(5)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
