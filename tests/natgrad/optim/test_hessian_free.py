"""Martens' method, part by part, against dense algebra."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd.functional import hessian, jacobian
from torch.nn import functional as F

from natgrad import cg
from natgrad.curvature import Dense
from natgrad.curvature.metrics import convex_loss
from natgrad.optim import HessianFree, OptimizerStatus
from natgrad.solvers import Status, relative_progress
from natgrad.testing.strategies import matrix_with_spectrum
from natgrad.trust_region import reduction_ratio

SEEDS = st.integers(0, 2**31 - 1)
DOUBLE = torch.float64
N = 3 * 6 + 6 + 6 * 2 + 2


def randn(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=DOUBLE)


class Network(nn.Module):
    """Three inputs, six tanh units, two outputs, the weights in one vector."""

    def __init__(self, theta):
        super().__init__()
        self.theta = nn.Parameter(theta.clone())

    def outputs(self, theta, x):
        first, bias, second, last = theta.split([18, 6, 12, 2])
        return (x @ first.view(3, 6) + bias).tanh() @ second.view(6, 2) + last

    def forward(self, x):
        return self.outputs(self.theta, x)


class Training:
    """A regression by squared errors. With ``dense`` curvature its solves can be repeated to the
    last bit, however conjugate gradients amplify rounding."""

    def __init__(self, seed=0, dense=False, **settings):
        generator = torch.Generator().manual_seed(seed)
        self.x, self.y = randn(generator, 40, 3), randn(generator, 40, 2)
        self.model = Network(randn(generator, N))
        if dense:
            curvature: dict[str, Any] = {"curvature": lambda: Dense(self.gauss_newton())}
            self.optimizer = HessianFree(self.model.parameters(), **curvature, **settings)
        else:
            self.optimizer = HessianFree(self.model, loss="squared_error", **settings)

    @property
    def theta(self):
        return self.model.theta.detach().clone()

    @property
    def report(self):
        return self.optimizer.last_step

    @property
    def damping(self):
        return self.optimizer.param_groups[0]["damping"]

    def closure(self):
        self.optimizer.zero_grad()
        loss = F.mse_loss(self.model(self.x), self.y)
        loss.backward()
        return loss

    def step(self):
        """(θ before, g, G before)"""
        before, G = self.theta, self.gauss_newton()
        self.optimizer.step(self.closure)
        assert self.model.theta.grad is not None
        return before, self.model.theta.grad.clone(), G

    def loss(self, theta):
        return float(F.mse_loss(self.model.outputs(theta, self.x), self.y))

    def gauss_newton(self):
        J = jacobian(lambda theta: self.model.outputs(theta, self.x).flatten(), self.theta)
        return 2 / len(J) * J.mT @ J


def quadratic(A, b, **settings):
    """½ xᵀA x − bᵀx from 0: (x, optimizer, closure)."""
    x = torch.zeros_like(b, requires_grad=True)
    optimizer = HessianFree([x], curvature=lambda: Dense(A), **settings)

    def closure():
        optimizer.zero_grad()
        loss = x @ A @ x / 2 - b @ x
        loss.backward()
        return loss

    return x, optimizer, closure


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_a_quadratic_takes_one_step(scale, generator):
    A = scale * matrix_with_spectrum(torch.logspace(0, -2, 9, dtype=DOUBLE), seed=0)
    b = scale * randn(generator, 9)
    x, optimizer, closure = quadratic(A, b, damping=0.0)
    optimizer.step(closure)
    report = optimizer.last_step
    assert float((A @ x.detach() - b).norm()) <= 1e-6 * float(b.norm())
    assert (report.status, report.step_scale) == (OptimizerStatus.ACCEPTED, 1.0)
    assert report.actual_reduction == pytest.approx(report.predicted_reduction)
    assert report.actual_reduction == pytest.approx(float(b @ torch.linalg.solve(A, b)) / 2)


def test_a_linear_model_takes_one_step(generator):
    model = nn.utils.skip_init(nn.Linear, 4, 2, dtype=DOUBLE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(randn(generator, *parameter.shape))
    x, y = randn(generator, 30, 4), randn(generator, 30, 2)
    optimizer = HessianFree(model, loss="squared_error", damping=0.0)

    def closure():
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    best = torch.linalg.lstsq(torch.cat([x, torch.ones(30, 1).double()], 1), y).solution
    found = torch.cat([model.weight, model.bias[:, None]], 1).mT.detach()
    torch.testing.assert_close(found, best, rtol=1e-5, atol=1e-5)


def expected_damping(damping, ratio):
    if ratio > 0.75:
        return damping / 1.5
    return damping if ratio >= 0.25 else damping * 1.5


def test_damping_follows_the_reduction_ratio_by_three_halves_and_two_thirds():
    seen = set()
    for seed, damping in ((0, 1e-4), (1, 1e-3), (2, 1e-2), (3, 1.0), (4, 1e-3)):
        run = Training(seed, damping=damping)
        for _ in range(10):
            before, g, G = run.step()
            report = run.report
            if report.status is not OptimizerStatus.ACCEPTED:
                assert run.damping == report.damping * 1.5
                seen.add("refused")
                continue
            # ρ is that of the whole direction, of which the search may have taken a part.
            k = report.step_scale
            d = (before - run.theta) / k
            slope, quadratic = (
                (report.predicted_reduction + report.predicted_kl) / k,
                report.predicted_kl / k**2,
            )
            predicted = slope - quadratic
            assert predicted == pytest.approx(float(g @ d - d @ G @ d / 2), rel=1e-7)
            after = run.loss(run.theta if k == 1 else before - d)
            ratio = reduction_ratio(report.loss, after, predicted)
            if k == 1:
                simple = report.actual_reduction / report.predicted_reduction
                assert ratio == pytest.approx(simple, rel=1e-6)
            assert min(abs(ratio - 0.25), abs(ratio - 0.75)) > 1e-6
            assert run.damping == expected_damping(report.damping, ratio)
            seen.add("less" if ratio > 0.75 else "same" if ratio >= 0.25 else "more")
    assert {"less", "same", "more"} <= seen


def test_without_a_closure_the_damping_stays_and_the_whole_direction_is_taken():
    run = Training(damping=0.3)
    for _ in range(3):
        run.closure()
        assert run.model.theta.grad is not None
        before, G, g = run.theta, run.gauss_newton(), run.model.theta.grad.clone()
        run.optimizer.step()
        s = torch.linalg.solve(G + 0.3 * torch.eye(N, dtype=DOUBLE), g)
        assert float((before - run.theta - s).norm()) <= 5e-2 * float(s.norm())
        assert (run.damping, run.report.step_scale) == (0.3, 1.0)


@pytest.mark.parametrize("seed", range(4))
def test_a_warm_start_saves_iterations_of_the_second_solve(seed):
    """Where the problem is nearly that of the step before: short steps on the same data."""
    warm = Training(seed, damping=1e-2, lr=0.02, progress=1e-12, rtol=1e-3)
    warm.step()
    cold = copy.deepcopy(warm)
    cold.optimizer.param_groups[0]["warm_start"] = 0.0
    for run in (warm, cold):
        run.step()
        assert run.report.solver_status is Status.CONVERGED
    assert warm.report.iterations < cold.report.iterations


def backward_walk(run, before, solution):
    """(iterate, index) that Martens' walk ends at, by the loss at every kept iterate."""
    walked = [x for x, _ in solution.iterates if not torch.equal(x, solution.x)] + [solution.x]
    index = len(walked) - 1
    while index > 0 and run.loss(before - walked[index - 1]) < run.loss(before - walked[index]):
        index -= 1
    return walked[index], index, len(walked)


@pytest.mark.parametrize("damping", [1e-5, 1e-3, 1e-1])
def test_the_iterate_taken_is_the_one_that_the_backward_walk_ends_at(damping):
    places = set()
    for seed in range(4):
        run = Training(seed, dense=True, damping=damping)
        last = None
        for _ in range(3):
            before, g, G = run.step()
            solution = cg(
                Dense(G), g, damping=run.report.damping, x0=last, rtol=1e-6, max_iterations=250,
                stop=relative_progress(5e-4), iterate_growth=1.3,
            )  # fmt: skip
            chosen, index, kept = backward_walk(run, before, solution)
            if run.report.status is OptimizerStatus.ACCEPTED:
                d = (before - run.theta) / run.report.step_scale
                assert float((d - chosen).norm()) <= 1e-9 * float(chosen.norm())
                places.add("last" if index == kept - 1 else "between" if index else "first")
            solved = run.optimizer.state[run.model.theta]["solution"]
            assert torch.equal(solved, solution.x)
            last = 0.95 * solved
    if damping < 1e-3:  # or the walk would be a formality
        assert "between" in places


@settings(max_examples=8)
@given(SEEDS, st.sampled_from([1e-4, 1e-2, 1.0]), st.sampled_from([1.0, 0.3]))
def test_reductions_are_those_of_the_dense_model_and_of_the_loss(seed, damping, lr):
    run = Training(seed, damping=damping, lr=lr)
    for _ in range(4):
        before, g, G = run.step()
        report = run.report
        if report.status is not OptimizerStatus.ACCEPTED:
            assert torch.equal(run.theta, before)
            continue
        d = before - run.theta
        assert report.predicted_reduction == pytest.approx(float(g @ d - d @ G @ d / 2), rel=1e-7)
        assert report.predicted_kl == pytest.approx(float(d @ G @ d / 2), rel=1e-7)
        measured = run.loss(before) - run.loss(run.theta)
        assert report.actual_reduction == pytest.approx(measured, rel=1e-9, abs=1e-14)
        # The search's own condition, on the slope.
        assert measured > 1e-2 * float(g @ d) * (1 - 1e-9)


def test_a_preconditioner_is_given_the_damped_curvature_and_changes_no_solution():
    seen = []

    def jacobi(A):
        seen.append(A.to_dense())
        inverse = 1 / A.diagonal()
        return lambda v: inverse * v

    plain = Training(damping=0.1, progress=1e-12, rtol=1e-10)
    other = Training(damping=0.1, progress=1e-12, rtol=1e-10, preconditioner=jacobi)
    for run in (plain, other):
        _, _, G = run.step()
    torch.testing.assert_close(seen[0], G + 0.1 * torch.eye(N, dtype=DOUBLE))
    solutions = [run.optimizer.state[run.model.theta]["solution"] for run in (plain, other)]
    torch.testing.assert_close(*solutions, rtol=1e-7, atol=1e-7)


def output_hessian(loss, y):
    """∇² of a loss in all the outputs, dense."""
    flat = hessian(lambda outputs: loss(outputs.view_as(y)), y.flatten())
    return flat.view(y.numel(), y.numel())


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "squared_error", "own"])
def test_the_model_of_every_loss_is_that_of_its_hessian_in_the_outputs(loss, generator):
    """G = Jᵀ ∇²loss J, which names of losses and metrics of one's own stand for."""
    model, x = Network(randn(generator, N)), randn(generator, 12, 3)
    labels = torch.randint(0, 2, (12,), generator=generator)
    targets = torch.rand(12, 2, generator=generator, dtype=DOUBLE)

    def total(y):
        return (y - targets).cosh().sum()

    value = {
        "cross_entropy": lambda y: F.cross_entropy(y, labels),
        "binary_cross_entropy": lambda y: F.binary_cross_entropy_with_logits(y, targets),
        "squared_error": lambda y: F.mse_loss(y, targets),
        "own": lambda y: total(y) / len(y),
    }[loss]
    metric = convex_loss(total) if loss == "own" else loss
    optimizer = HessianFree(model, loss=metric, damping=1e-2)

    def closure():
        optimizer.zero_grad()
        found = value(model(x))
        found.backward()
        return found

    theta = model.theta.detach().clone()
    J = jacobian(lambda weights: model.outputs(weights, x).flatten(), theta)
    G = J.mT @ output_hessian(value, model.outputs(theta, x)) @ J
    optimizer.step(closure)
    d, report = theta - model.theta.detach(), optimizer.last_step
    assert report is not None
    assert report.status is OptimizerStatus.ACCEPTED
    assert report.predicted_kl == pytest.approx(float(d @ G @ d / 2), rel=1e-7)
    assert model.theta.grad is not None
    predicted = float(model.theta.grad @ d) - report.predicted_kl
    assert report.predicted_reduction == pytest.approx(predicted, rel=1e-7)
