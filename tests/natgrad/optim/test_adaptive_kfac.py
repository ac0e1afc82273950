"""The step length, momentum and damping that AdaptiveKFAC finds, against dense matrices."""

import copy

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal
from torch.nn import functional as F

from natgrad import Fisher, Kronecker, reduction_ratio, update_damping
from natgrad.curvature import DampingSplit
from natgrad.flat import flatten
from natgrad.optim import AdaptiveKFAC, OptimizerStatus
from natgrad.testing.networks import categorical, make_network

DOUBLE = torch.float64


def half_squares(outputs, targets):
    """−log p of the likelihood "normal", but for a constant."""
    return (outputs - targets).square().sum(1).mean() / 2


class Training:
    """An optimizer at work on one batch, by ``scale`` times the loss of its likelihood."""

    def __init__(self, model, x, y, scale=1.0, **settings):
        self.model, self.x, self.y, self.scale = model, x, y, scale
        self.classes = not y.is_floating_point()
        likelihood = "categorical" if self.classes else "normal"
        self.optimizer = AdaptiveKFAC(model, **{"likelihood": likelihood, **settings})

    def loss(self):
        loss = F.cross_entropy if self.classes else half_squares
        return self.scale * loss(self.model(self.x), self.y)

    def closure(self):
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        return loss

    def step(self):
        self.optimizer.step(self.closure)
        return self.report

    def plain_step(self):
        self.closure()
        self.optimizer.step()

    @property
    def theta(self):
        return flatten(self.model.parameters())

    @property
    def gradient(self):
        return flatten(parameter.grad for parameter in self.model.parameters())

    @property
    def damping(self):
        return self.optimizer.param_groups[0]["damping"]

    @property
    def report(self):
        return self.optimizer.last_step

    def fisher(self):
        """Dense, of an unwatched copy: our own passes must not count as batches."""
        model = copy.deepcopy(self.model)

        def normal(x):
            return Independent(Normal(model(x), torch.ones((), dtype=DOUBLE)), 1)

        forward = categorical(model) if self.classes else normal
        return Fisher(forward, model.parameters(), data=self.x).to_dense()


@pytest.fixture
def classification(generator):
    """settings -> training of a small network on random labels."""
    model, x = make_network("mlp", generator)
    y = torch.randint(0, 3, (len(x),), generator=generator)
    return lambda **settings: Training(copy.deepcopy(model), x, y, **settings)


@pytest.fixture
def regression(built, generator):
    """settings -> training of a linear model, whose minimum is above 0."""
    x = torch.randn(20, 3, generator=generator, dtype=DOUBLE)
    y = torch.randn(20, 2, generator=generator, dtype=DOUBLE)
    return lambda **settings: Training(built(lambda: nn.Linear(3, 2)), x, y, **settings)


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("damping", [0.01, 1.0])
def test_length_and_momentum_minimise_the_damped_model(damping, corrected, classification):
    """Over the span of Δ and the last step; without a closure λ stays."""
    training = classification(
        damping=damping, samples=None, refresh_every=1000, corrected=corrected
    )
    unwatched = copy.deepcopy(training.model)
    K = Kronecker(unwatched, training.x, forward=categorical(unwatched), corrected=corrected)
    split = DampingSplit.EXACT if corrected else DampingSplit.TRACE
    last = None
    for _ in range(6):
        before, F_ = training.theta, training.fisher()
        training.plain_step()
        g, d = training.gradient, training.theta - before
        spanning = [-K.solve(g, damping=damping, split=split), *([] if last is None else [last])]
        V = torch.stack(spanning, dim=1)
        damped = F_ + damping * torch.eye(len(g), dtype=DOUBLE)

        def model(d, A=damped, g=g):
            return float(g @ d + d @ A @ d / 2)

        best = V @ torch.linalg.solve(V.mT @ damped @ V, -V.mT @ g)
        assert torch.allclose(d, best, rtol=1e-6, atol=1e-8 * float(d.norm()))
        assert (V.mT @ (g + damped @ d)).abs().max() <= 1e-8 * float(V.norm() * g.norm())
        for direction in V.unbind(1):
            for length in (-0.1, -1e-3, 1e-3, 0.1):
                assert model(d + length * direction) > model(d)
        report = training.report
        assert report.status is OptimizerStatus.ACCEPTED
        assert report.predicted_reduction == pytest.approx(-model(d, F_), rel=1e-8)
        assert report.predicted_kl == pytest.approx(float(d @ F_ @ d / 2), rel=1e-8)
        assert training.damping == report.damping == damping
        last = d


def least_squares(training):
    """The least loss of a linear model."""
    x = torch.cat([training.x, torch.ones(len(training.x), 1, dtype=DOUBLE)], dim=1)
    return float(half_squares(x @ torch.linalg.lstsq(x, training.y).solution, training.y))


@pytest.mark.parametrize("corrected", [False, True])
def test_a_linear_model_is_at_its_minimum_after_a_step_or_two(corrected, regression):
    """G ⊗ A is the Fisher matrix there, and that the Hessian."""
    training = regression(damping=1e-12, minimum_damping=0.0, samples=None, corrected=corrected)
    start, least = float(training.loss().detach()), least_squares(training)
    report = training.step()
    assert report.status is OptimizerStatus.ACCEPTED
    assert float(training.loss().detach()) - least <= 1e-9 * (start - least)
    # Gradients of an exact quadratic: the model's promise is what happens.
    assert report.actual_reduction == pytest.approx(report.predicted_reduction, rel=1e-9)
    training.step()
    training.closure()
    assert float(training.gradient.norm()) <= 1e-9


def test_momentum_makes_up_for_factors_that_are_wrong(regression):
    """With λ for K far too large, (Δ, d₋) are conjugate gradients: n steps for n parameters."""
    training = regression(damping=0.0, minimum_damping=0.0, samples=None, refresh_every=1000)
    training.optimizer._factors.at = lambda *_, **__: (Identity(), 1)
    least = least_squares(training)
    for _ in range(5):  # A has four distinct eigenvalues
        training.step()
    assert float(training.loss().detach()) - least <= 1e-12 * least


class Identity:
    def solve(self, g, **_):
        return g


@pytest.mark.parametrize("adapt_every", [1, 5, 100])
def test_a_step_that_raises_the_loss_is_taken_back_and_raises_the_damping(adapt_every, regression):
    """The loss is 10 times that of the likelihood, and so is the step."""
    factor, damping = 1.7, 1e-6
    training = regression(
        scale=10.0, damping=damping, minimum_damping=0.0, factor=factor, samples=None,
        adapt_every=adapt_every,
    )  # fmt: skip
    start = training.theta
    for count in range(1, 6):
        report = training.step()
        assert report.status is OptimizerStatus.NO_IMPROVEMENT
        assert report.actual_reduction < 0 < report.predicted_reduction
        assert report.step_scale == 0.0
        assert torch.equal(training.theta, start)
        assert training.damping == pytest.approx(damping * factor**count)
    for _ in range(60):
        if training.step().status is OptimizerStatus.ACCEPTED:
            break
    assert training.report.actual_reduction > 0
    assert not torch.equal(training.theta, start)


def test_a_step_taken_back_is_no_momentum(regression):
    """The next one is that of an optimizer that had started with the greater damping."""
    training = regression(scale=10.0, damping=1.0, factor=30.0, samples=None, decay=0.5)
    assert training.step().status is OptimizerStatus.NO_IMPROVEMENT
    other = regression(scale=10.0, damping=30.0, samples=None, decay=0.5)
    assert training.step().status is other.step().status is OptimizerStatus.ACCEPTED
    assert torch.allclose(training.theta, other.theta, rtol=1e-12)


@pytest.mark.parametrize("minimum", [0.0, 0.2])
@pytest.mark.parametrize("adapt_every", [1, 3, 5])
def test_the_damping_follows_the_ratio_every_so_many_steps(adapt_every, minimum, classification):
    factor = 1.4
    training = classification(
        damping=0.5, factor=factor, adapt_every=adapt_every, minimum_damping=minimum, samples=None
    )  # fmt: skip
    expected, changes = 0.5, 0
    for step in range(1, 16):
        before, F_ = training.theta, training.fisher()
        report = training.step()
        assert report.damping == pytest.approx(expected)
        if report.status is OptimizerStatus.ACCEPTED:
            d = training.theta - before
            promised = -float(training.gradient @ d + d @ F_ @ d / 2)
            assert report.predicted_reduction == pytest.approx(promised, rel=1e-6)
        after = report.loss - report.actual_reduction
        ratio = reduction_ratio(report.loss, after, report.predicted_reduction)
        if step % adapt_every == 0 or report.status is not OptimizerStatus.ACCEPTED:
            new = update_damping(expected, ratio, factor=factor, minimum=minimum)
            expected, changes = new, changes + (new != expected)
        assert training.damping == pytest.approx(expected)
    assert changes >= 2


def test_plain_steps_leave_the_damping_alone(classification):
    training = classification(damping=0.5, adapt_every=1)
    for _ in range(4):
        training.plain_step()
    assert training.damping == 0.5


@pytest.mark.parametrize("samples", [None, 2])
def test_a_fraction_is_drawn_by_generators_of_its_own(samples, classification):
    def path(seed, fraction=0.5):
        training = classification(
            fraction=fraction, seed=seed, samples=samples, refresh_every=2, damping=0.1
        )  # fmt: skip
        thetas = []
        for _ in range(6):
            training.step()
            thetas.append(training.theta)
        return torch.stack(thetas)

    before = torch.get_rng_state()
    one = path(0)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng():
        torch.manual_seed(123)
        assert torch.equal(path(0), one)
    assert not torch.equal(path(1), one)
    assert not torch.equal(path(2**32), one)
    assert not torch.equal(path(0, 1.0), one)


def test_curvature_of_a_fraction_is_that_of_so_many_samples(classification):
    """At the cost of a pass over these alone."""
    training = classification(fraction=3 / 7, samples=None, damping=0.1)
    sizes = []
    training.model.register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))
    training.plain_step()
    assert sizes[0] == 7
    assert sizes[1:]
    assert set(sizes[1:]) == {3}


@pytest.mark.parametrize(
    "settings", [{}, {"corrected": True}, {"fraction": 0.5}], ids=lambda s: next(iter(s), "plain")
)
@pytest.mark.parametrize("steps", [1, 5, 6])
def test_a_state_dict_resumes_bit_for_bit_between_refreshes(steps, settings, classification):
    settings = {"refresh_every": 4, "adapt_every": 3, "damping": 0.1, **settings}
    training, resumed = classification(**settings), classification(**{**settings, "damping": 7.0})
    for _ in range(steps):
        training.step()
    resumed.model.load_state_dict(copy.deepcopy(training.model.state_dict()))
    resumed.optimizer.load_state_dict(copy.deepcopy(training.optimizer.state_dict()))
    for _ in range(7):
        one, other = training.step(), resumed.step()
        assert torch.equal(training.theta, resumed.theta)
        assert one.damping == other.damping
        assert one.predicted_reduction == other.predicted_reduction
