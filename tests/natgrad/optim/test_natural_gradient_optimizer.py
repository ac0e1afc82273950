"""The natural gradient against dense algebra, and that coordinates do not matter to it."""

import math
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd.functional import jacobian
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence
from torch.func import functional_call
from torch.nn import functional as F

import natgrad
from natgrad.curvature import Dense, Fisher
from natgrad.flat import flatten, unflatten
from natgrad.optim import NaturalGradient, OptimizerStatus
from natgrad.testing.networks import make_network
from natgrad.testing.strategies import matrix_with_spectrum

SEEDS = st.integers(0, 2**31 - 1)
DOUBLE = torch.float64
WEIGHTS = 2 * 3 + 3 + 3 + 1
EXACT = {
    "cg": partial(natgrad.cg, rtol=1e-13, max_iterations=60),
    "cholesky": partial(natgrad.cholesky, rtol=1e-13),
}


def randn(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=DOUBLE)


def network(theta, x):
    """Two inputs, three tanh units, one logit, the weights in one vector."""
    first, bias, second, last = theta.split([6, 3, 3, 1])
    return (x @ first.view(2, 3) + bias).tanh() @ second.view(3, 1) + last


class InCoordinates(nn.Module):
    """``network`` with weights θ = A ξ + b, from ``theta``; ξ is trained."""

    def __init__(self, theta, A, b):
        super().__init__()
        self.A, self.b = A, b
        self.xi = nn.Parameter(torch.linalg.solve(A, theta - b))

    @property
    def theta(self):
        return self.A @ self.xi.detach() + self.b

    def forward(self, x):
        return network(self.A @ self.xi + self.b, x)


class Plain(InCoordinates):
    """θ = ξ."""

    def __init__(self, theta):
        super().__init__(theta, torch.eye(WEIGHTS, dtype=DOUBLE), torch.zeros(WEIGHTS).double())


class Task:
    """Noisy labels: the Fisher matrix has full rank, and the minimum is inside."""

    def __init__(self, seed=0, samples=60):
        self.generator = torch.Generator().manual_seed(seed)
        self.x = 2 * randn(self.generator, samples, 2)
        noise = randn(self.generator, samples, 1)
        self.y = (self.x[:, :1] * self.x[:, 1:] + noise > 0).double()
        self.theta = randn(self.generator, WEIGHTS)

    @torch.no_grad()
    def value(self, model):
        return float(self.loss(model))

    def loss(self, model):
        return F.binary_cross_entropy_with_logits(model(self.x), self.y)

    def closure(self, model, optimizer):
        def closure():
            optimizer.zero_grad()
            loss = self.loss(model)
            loss.backward()
            return loss

        return closure

    def step(self, model, optimizer, searching=False):
        closure = self.closure(model, optimizer)
        if searching:
            return optimizer.step(closure)
        closure()
        return optimizer.step()

    def path(self, model, optimizer, searching=False, steps=10):
        """The outputs after every step."""
        outputs = []
        for _ in range(steps):
            self.step(model, optimizer, searching)
            outputs.append(model(self.x).detach())
        return torch.stack(outputs)

    def fisher(self, theta):
        """Mean over the samples of p (1 − p) ∇f ∇fᵀ, f the logit."""
        J = jacobian(lambda weights: network(weights, self.x).flatten(), theta)
        p = network(theta, self.x).sigmoid()
        return J.mT @ (p * (1 - p) * J) / len(J)

    def gradient(self, theta):
        theta = theta.clone().requires_grad_()
        loss = F.binary_cross_entropy_with_logits(network(theta, self.x), self.y)
        return torch.autograd.grad(loss, theta)[0]

    def direction(self, theta, damping=0.0):
        """(s, sᵀF s, gᵀs) of (F + λI) s = g."""
        K, g = self.fisher(theta), self.gradient(theta)
        s = torch.linalg.solve(K + damping * torch.eye(len(K), dtype=DOUBLE), g)
        return s, float(s @ K @ s), float(g @ s)


def ill_conditioned(generator, n, condition=1e2):
    """A square matrix of this condition, not symmetric."""
    U, V = (torch.linalg.qr(randn(generator, n, n))[0] for _ in range(2))
    return U @ torch.diag(torch.logspace(0, -math.log10(condition), n, dtype=DOUBLE)) @ V


def difference(path, other):
    return float((path - other).abs().max() / path.abs().max())


@pytest.mark.parametrize("searching", [False, True], ids=["step()", "step(closure)"])
@pytest.mark.parametrize("solver", EXACT)
@pytest.mark.parametrize("lr", [0.2, math.inf])
def test_affine_coordinates_of_the_weights_change_nothing(lr, solver, searching):
    task = Task(seed=1, samples=300)  # whose Fisher matrix has a condition of 1e3
    A, b = ill_conditioned(task.generator, WEIGHTS), randn(task.generator, WEIGHTS)

    def path(model):
        optimizer = NaturalGradient(
            model, likelihood="bernoulli", lr=lr, max_kl=1e-3, damping=0.0, solver=EXACT[solver]
        )
        return task.path(model, optimizer, searching)

    plain = path(Plain(task.theta))
    assert difference(plain[0], plain[-1]) > 1e-2
    # Aᵀ F A has a condition of up to 1e3 · (1e2)², by which a residual of 1e-13, the solvers' rtol,
    # is multiplied in the step: 1e-6 of the way.
    assert difference(plain, path(InCoordinates(task.theta, A, b))) < 1e-6


def test_they_change_the_path_of_adam():
    task = Task(seed=1, samples=300)
    A, b = ill_conditioned(task.generator, WEIGHTS), randn(task.generator, WEIGHTS)
    plain, other = (
        task.path(model, torch.optim.Adam(model.parameters(), lr=1e-2))
        for model in (Plain(task.theta), InCoordinates(task.theta, A, b))
    )
    assert difference(plain, other) > 1e-3


@settings(max_examples=10)
@given(
    SEEDS, st.sampled_from(sorted(EXACT)), st.sampled_from([1e-6, 1e-2, 1e3]), st.floats(0.1, 2.0)
)
def test_the_step_is_that_of_dense_algebra(seed, solver, max_kl, lr):
    task, damping = Task(seed), 1e-4
    model = Plain(task.theta)
    optimizer = NaturalGradient(
        model, likelihood="bernoulli", lr=lr, max_kl=max_kl, damping=damping, solver=EXACT[solver],
        measure_kl=False,
    )  # fmt: skip
    task.step(model, optimizer)
    s, sFs, slope = task.direction(task.theta, damping)
    alpha = min(lr, math.sqrt(2 * max_kl / sFs))
    report = optimizer.last_step
    assert torch.allclose(model.theta, task.theta - alpha * s, rtol=0, atol=1e-9 * float(s.norm()))
    assert report is not None
    assert report.step_scale == pytest.approx(alpha, rel=1e-8)
    assert report.predicted_kl == pytest.approx(alpha**2 * sFs / 2, rel=1e-8)
    assert report.predicted_kl <= max_kl * (1 + 1e-12)
    assert report.predicted_reduction == pytest.approx(
        alpha * slope - report.predicted_kl, rel=1e-8
    )


@settings(max_examples=5)
@given(SEEDS)
def test_the_predicted_kl_is_the_quadratic_form_of_the_step_taken(seed):
    task = Task(seed)
    model = Plain(task.theta)
    optimizer = NaturalGradient(model, likelihood="bernoulli", max_kl=1e-2)
    for _ in range(5):
        before = model.theta
        task.step(model, optimizer, searching=True)
        d = model.theta - before
        quadratic = float(d @ task.fisher(before) @ d / 2)
        assert optimizer.last_step is not None
        assert optimizer.last_step.predicted_kl == pytest.approx(quadratic)
        assert optimizer.last_step.predicted_kl <= 1e-2 * (1 + 1e-12)


def test_the_true_divergence_agrees_to_third_order():
    """Half the length: an eighth of the difference."""
    task = Task()

    def missed(max_kl):
        model = Plain(task.theta)
        before = Bernoulli(logits=model(task.x).detach())
        optimizer = NaturalGradient(
            model, likelihood="bernoulli", lr=math.inf, max_kl=max_kl, measure_kl=False
        )
        task.step(model, optimizer)
        after = Bernoulli(logits=model(task.x).detach())
        true = float(kl_divergence(before, after).mean())
        assert optimizer.last_step is not None
        assert true == pytest.approx(optimizer.last_step.predicted_kl, rel=0.1)
        return abs(true - optimizer.last_step.predicted_kl)

    differences = [missed(1e-4 / 4**k) for k in range(4)]
    for longer, shorter in pairwise(differences):
        assert longer / shorter == pytest.approx(8, rel=0.25)


def test_an_infinite_rate_goes_to_the_bound_and_a_finite_one_stops_there():
    task = Task()
    for lr, at_bound in ((math.inf, True), (1.0, False)):
        model = Plain(task.theta)
        optimizer = NaturalGradient(
            model, likelihood="bernoulli", lr=lr, max_kl=1e-2, measure_kl=False
        )
        kls = []
        for _ in range(40):
            task.step(model, optimizer)
            assert optimizer.last_step is not None
            kls.append(optimizer.last_step.predicted_kl)
        assert kls[0] == pytest.approx(1e-2)
        assert all(kl <= 1e-2 * (1 + 1e-12) for kl in kls)
        assert (min(kls) == pytest.approx(1e-2)) is at_bound
        assert (kls[-1] < 1e-4) is not at_bound


@settings(max_examples=10)
@given(SEEDS, st.sampled_from([1e-2, 1.0, 1e2]))
def test_an_accepted_step_keeps_armijos_condition_and_twice_it_would_not(seed, max_kl):
    task, damping = Task(seed), 1e-3
    model = Plain(task.theta)
    optimizer = NaturalGradient(
        model, likelihood="bernoulli", lr=math.inf, max_kl=max_kl, damping=damping,
        solver=EXACT["cholesky"], measure_kl=False,
    )  # fmt: skip
    for _ in range(4):
        before, loss = model.theta, task.value(model)
        returned = task.step(model, optimizer, searching=True)
        report, (s, sFs, slope) = optimizer.last_step, task.direction(before, damping)
        assert float(returned.detach()) == loss
        assert report is not None
        if report.status is not OptimizerStatus.ACCEPTED:
            assert report.status is OptimizerStatus.NO_IMPROVEMENT
            assert torch.equal(model.theta, before)
            break
        after = task.value(model)
        assert report.actual_reduction == pytest.approx(loss - after, rel=1e-9, abs=1e-14)
        assert loss - after > 0.1 * report.step_scale * slope * (1 - 1e-8)
        share = report.step_scale / math.sqrt(2 * max_kl / sFs)
        halvings = -math.log2(share)
        assert halvings == pytest.approx(round(halvings), abs=1e-6)
        assert report.evaluations == 2 + round(halvings)
        if round(halvings):
            twice = task.value(Plain(before - 2 * report.step_scale * s))
            assert not loss - twice > 0.1 * 2 * report.step_scale * slope * (1 + 1e-8)


@pytest.mark.parametrize("max_kl", [1e-5, 1e3])
def test_groups_scale_the_direction_and_the_bound_is_that_of_the_whole(max_kl, generator):
    network = make_network("mlp", generator)
    model: Any = network[0]
    x = network[1]
    y = torch.randint(0, 3, (len(x),), generator=generator)
    halves = [model.first.parameters(), model.second.parameters()]
    groups = [{"params": half, "lr": lr} for half, lr in zip(halves, (0.8, 0.1), strict=True)]
    optimizer = NaturalGradient(
        groups, model=model, likelihood="categorical", max_kl=max_kl, damping=1e-2,
        solver=EXACT["cholesky"], measure_kl=False,
    )  # fmt: skip
    theta = flatten(model.parameters()).detach()
    F.cross_entropy(model(x), y).backward()
    g = flatten(p.grad for p in model.parameters())
    K = by_hand("categorical", model, x)
    optimizer.step()
    D = torch.cat([torch.full((20,), 0.8), torch.full((18,), 0.1)]).double()
    d = D * torch.linalg.solve(K + 1e-2 * torch.eye(len(K), dtype=DOUBLE), g)
    alpha = min(1.0, math.sqrt(2 * max_kl / float(d @ K @ d)))
    torch.testing.assert_close(flatten(model.parameters()).detach(), theta - alpha * d)
    assert optimizer.last_step is not None
    assert optimizer.last_step.predicted_kl == pytest.approx(alpha**2 * float(d @ K @ d) / 2)


def by_hand(likelihood, model, x):
    """Σ over the samples of Jᵀ M J / N, M the Fisher matrix of one sample's distribution, by the
    name of a ``likelihood`` or as it is."""
    parameters = dict(model.named_parameters())

    def outputs(theta):
        pieces = unflatten(theta, list(parameters.values()))
        return functional_call(model, dict(zip(parameters, pieces, strict=True)), (x,))

    theta = flatten(parameters.values()).detach()
    J, y = jacobian(outputs, theta), outputs(theta)
    if isinstance(likelihood, torch.Tensor):
        M = likelihood
    elif likelihood == "categorical":
        p = y.softmax(-1)
        M = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    elif likelihood == "bernoulli":
        M = torch.diag_embed(y.sigmoid() * (1 - y.sigmoid()))
    else:
        M = torch.diag_embed(torch.ones_like(y))
    return torch.einsum("noi,nop,npj->ij", J, M, J) / len(x)


def losses_of(likelihood, outputs, generator):
    """−log p of random targets, up to a constant."""
    if likelihood == "categorical":
        y = torch.randint(0, outputs.shape[1], (len(outputs),), generator=generator)
        return F.cross_entropy(outputs, y)
    y = torch.rand(outputs.shape, generator=generator, dtype=DOUBLE)
    if likelihood == "bernoulli":
        return F.binary_cross_entropy_with_logits(outputs, y.round())
    return F.mse_loss(outputs, y)


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "normal"])
def test_the_names_of_likelihoods_are_their_fisher_matrices(likelihood, chunk_size, generator):
    model, x = make_network("mlp", generator)
    seen = []

    def solver(A, b):
        seen.append(A.to_dense())
        return natgrad.cg(A, b)

    optimizer = NaturalGradient(
        model, likelihood=likelihood, damping=0.0, chunk_size=chunk_size, solver=solver
    )
    losses_of(likelihood, model(x), generator).backward()
    expected = by_hand(likelihood, model, x)
    optimizer.step()
    torch.testing.assert_close(seen[0], expected, rtol=1e-10, atol=1e-12)


class Returning(nn.Module):
    """A model whose output is a distribution."""

    def __init__(self, model, distribution):
        super().__init__()
        self.model, self.distribution = model, distribution

    def forward(self, x):
        return self.distribution(self.model(x))


def two_normals(y):
    """Means and deviations, both learned, and sharing the second output."""
    return Independent(Normal(y[:, :2], F.softplus(y[:, 1:])), 1)


@pytest.mark.parametrize("returns", [False, True], ids=["a function", "None"])
def test_a_likelihood_is_a_function_or_what_the_model_returns(returns, generator):
    """1/σ² for a mean, 2/σ² for a deviation, by the chain rule in the outputs."""
    model, x = make_network("mlp", generator)
    y = model(x).detach()
    precision = F.softplus(y[:, 1:]) ** -2
    D = torch.zeros(len(x), 4, 3, dtype=DOUBLE)
    D[:, 0, 0] = D[:, 1, 1] = 1
    D[:, 2, 1], D[:, 3, 2] = y[:, 1].sigmoid(), y[:, 2].sigmoid()
    M = D.mT @ torch.diag_embed(torch.cat([precision, 2 * precision], dim=1)) @ D
    expected = by_hand(M, model, x)
    seen = []

    def solver(A, b):
        seen.append(A.to_dense())
        return natgrad.cg(A, b)

    watched = Returning(model, two_normals) if returns else model
    likelihood = None if returns else two_normals
    optimizer = NaturalGradient(watched, likelihood=likelihood, damping=0.0, solver=solver)
    out = watched(x)
    distribution = out if returns else two_normals(out)
    (-distribution.log_prob(randn(generator, len(x), 2)).mean()).backward()
    optimizer.step()
    torch.testing.assert_close(seen[0], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chunk_size", [7, 60, 1000])
def test_chunks_change_rounding_only(chunk_size):
    task = Task()

    def path(chunk_size):
        model = Plain(task.theta)
        optimizer = NaturalGradient(
            model, likelihood="bernoulli", chunk_size=chunk_size, solver=EXACT["cholesky"]
        )
        return task.path(model, optimizer, searching=True, steps=4)

    assert difference(path(None), path(chunk_size)) < 1e-11


@pytest.mark.parametrize("frozen", ["requires_grad", "grad"])
@pytest.mark.parametrize("size", ["all", "trained"])
def test_curvature_may_be_of_all_parameters_or_of_those_with_a_gradient(size, frozen, generator):
    """A block of the whole is the matrix of its parameters."""
    network = make_network("mlp", generator)
    model: Any = network[0]
    x = network[1]
    if frozen == "requires_grad":
        model.first.bias.requires_grad_(False)
    y = torch.randint(0, 3, (len(x),), generator=generator)
    names = [name for name, _ in model.named_parameters()]
    kept = torch.cat(
        [torch.full((p.numel(),), n != "first.bias") for n, p in model.named_parameters()]
    )
    K = by_hand("categorical", model, x)
    block = K[kept][:, kept]
    optimizer = NaturalGradient(
        model.parameters(), curvature=lambda: Dense(K if size == "all" else block), damping=1e-2,
        solver=EXACT["cholesky"],
    )  # fmt: skip
    before = flatten(model.parameters()).detach()
    F.cross_entropy(model(x), y).backward()
    model.first.bias.grad = None
    g = flatten(p.grad for n, p in model.named_parameters() if n != "first.bias")
    optimizer.step()
    s = torch.linalg.solve(block + 1e-2 * torch.eye(len(block), dtype=DOUBLE), g)
    alpha = min(1.0, math.sqrt(2e-2 / float(s @ block @ s)))
    expected = before.clone()
    expected[kept] -= alpha * s
    assert "first.bias" in names
    torch.testing.assert_close(flatten(model.parameters()).detach(), expected)


def test_the_curvature_is_built_anew_for_every_step_and_one_of_another_size_is_refused():
    task = Task()
    model = Plain(task.theta)
    watched = Plain(task.theta)

    def fisher():
        return Fisher(Bernoulli(logits=model(task.x).squeeze(1)), [model.xi])

    given: dict[str, Any] = {"damping": 1e-3, "solver": EXACT["cholesky"]}
    by_curvature = NaturalGradient([model.xi], curvature=fisher, **given)
    by_model = NaturalGradient(watched, likelihood="bernoulli", measure_kl=False, **given)
    assert difference(task.path(model, by_curvature), task.path(watched, by_model)) < 1e-9

    wrong = matrix_with_spectrum(torch.ones(3, dtype=DOUBLE), seed=0)
    optimizer = NaturalGradient([model.xi], curvature=lambda: Dense(wrong))
    with pytest.raises(ValueError, match=r"shape \(3, 3\); the optimizer has 13"):
        task.step(model, optimizer)
