import copy
import math

import pytest
import torch

from rl_plugins.critics import (
    AdamRegression,
    Critic,
    GaussNewtonRegression,
    explained_variance,
)
from rl_plugins.policies import Features, mlp
from rl_plugins.policies.observations import Leaf, LeafKind

FEATURES = Features([Leaf((), LeafKind.NUMBERS, (3,))], normalise=False)


def problem(generator, n=400):
    x = torch.randn(n, 3, generator=generator)
    return x, torch.sin(x[:, 0]) + 0.5 * x[:, 1] ** 2


def network(generator, hidden=(16,)):
    return mlp(3, hidden, 1, output_gain=1.0, generator=generator)


def mean_square(net, x, y):
    with torch.no_grad():
        return float((net(x).squeeze(-1) - y).square().mean())


def adam(net, generator):
    return AdamRegression(
        net, epochs=20, batch_size=64, learning_rate=1e-2, generator=generator
    )  # fmt: skip


@pytest.mark.parametrize("method", ["gauss-newton", "adam"])
def test_a_fit_explains_the_targets(method, generator):
    x, y = problem(generator)
    net = network(generator)
    regression = GaussNewtonRegression() if method == "gauss-newton" else adam(net, generator)
    before = mean_square(net, x, y)
    for _ in range(10):
        regression.fit(net, x, y)
    assert mean_square(net, x, y) < 0.1 * before


def test_one_gauss_newton_step_solves_linear_least_squares(generator):
    x, y = problem(generator)
    net = network(generator, hidden=())
    GaussNewtonRegression(steps=1, cg_iterations=10, damping=0.0).fit(net, x, y)
    design = torch.cat([x, torch.ones(len(x), 1)], dim=1).double()
    solution = torch.linalg.lstsq(design, y.double()[:, None]).solution.flatten()
    found = torch.cat([net[0].weight.detach().flatten(), net[0].bias.detach()]).double()
    assert torch.allclose(found, solution, atol=2e-3)


def test_gauss_newton_never_makes_the_fit_worse(generator):
    x, y = problem(generator)
    net = network(generator)
    errors = [mean_square(net, x, y)]
    for _ in range(5):
        GaussNewtonRegression(steps=1).fit(net, x, y)
        errors.append(mean_square(net, x, y))
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("method", ["gauss-newton", "adam"])
def test_targets_that_are_not_finite_leave_the_critic_bitwise_as_it_was(method, generator):
    x, y = problem(generator)
    y[3] = float("nan")
    net = network(generator)
    before = [p.detach().clone() for p in net.parameters()]
    regression = GaussNewtonRegression() if method == "gauss-newton" else adam(net, generator)
    regression.fit(net, x, y)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_values_stay_the_same_when_the_scale_of_the_targets_moves(generator):
    x, y = problem(generator)

    class Idle:
        def fit(self, network, features, targets):
            assert not targets.requires_grad

    # In float64: the mean of the targets is thousands of times the values that must not move.
    critic = Critic(FEATURES, network(generator), Idle()).double()  # type: ignore[arg-type]
    x, y = x.double(), y.double()
    critic.fit(x, y)
    before = critic(x).detach()
    for factor in (1e3, 1e-2, 50.0):
        critic.fit(x, factor * (y + 7))
        assert torch.allclose(critic(x), before, rtol=1e-9, atol=1e-9)
    assert float(critic.shift) > 1
    assert float(critic.scale) > 1


def test_constant_targets_are_fitted_without_dividing_by_zero(generator):
    x, _ = problem(generator)
    critic = Critic(FEATURES, network(generator), GaussNewtonRegression(steps=10))
    critic.fit(x, torch.full((len(x),), 3.0))
    assert torch.allclose(critic(x), torch.tensor(3.0), atol=0.5)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e5])
def test_targets_far_from_zero_are_fitted_as_well(offset, generator):
    x, y = problem(generator)
    critic = Critic(FEATURES, network(generator), GaussNewtonRegression())
    for _ in range(10):
        critic.fit(x, offset + y)
    assert explained_variance(critic(x).detach(), offset + y) > 0.9


def test_explained_variance():
    y = torch.tensor([1.0, 2.0, 3.0])
    assert explained_variance(y, y) == 1.0
    assert explained_variance(torch.full((3,), 9.0), y) == 0.0
    assert math.isnan(explained_variance(y, torch.ones(3)))


def test_adam_resumes_from_its_state(generator):
    x, y = problem(generator)
    nets = [network(torch.Generator().manual_seed(1)) for _ in range(2)]
    generators = [torch.Generator().manual_seed(2) for _ in range(2)]
    first, second = (adam(net, g) for net, g in zip(nets, generators, strict=True))
    first.fit(nets[0], x, y)
    nets[1].load_state_dict(nets[0].state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    generators[1].set_state(generators[0].get_state())
    first.fit(nets[0], x, y)
    second.fit(nets[1], x, y)
    assert torch.equal(nets[0][0].weight, nets[1][0].weight)
