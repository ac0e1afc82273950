"""The Fisher operator against three independent definitions of the same matrix, and its promises.

Theory, line 6: K = Hessian of KL(π_old ‖ π_θ) at θ_old = E[∇log π ∇log πᵀ].
"""

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributions import (
    Categorical,
    Independent,
    Normal,
    kl_divergence,
)

from natgrad.curvature import Fisher
from natgrad.flat import assign, flatten


def normal(network, x):
    return Normal(network.body(x).sum(-1), 1.0, validate_args=False)


def layer(inputs, outputs, generator):
    linear = nn.utils.skip_init(nn.Linear, inputs, outputs, dtype=torch.float64)
    for parameter in linear.parameters():
        nn.init.normal_(parameter, std=0.7, generator=generator)
    return linear


class CategoricalNet(nn.Module):
    def __init__(self, generator):
        super().__init__()
        self.body = nn.Sequential(layer(3, 4, generator), nn.Tanh(), layer(4, 3, generator))

    def forward(self, x):
        return Categorical(logits=self.body(x))


class ProbabilitiesNet(CategoricalNet):
    def forward(self, x):
        return Categorical(probs=self.body(x).softmax(-1))


class GaussianNet(nn.Module):
    """Mean by a network, log σ a parameter of its own, as policies have it."""

    def __init__(self, generator):
        super().__init__()
        self.body = nn.Sequential(layer(3, 4, generator), nn.Tanh(), layer(4, 2, generator))
        self.log_std = nn.Parameter(torch.tensor([-0.5, 0.3], dtype=torch.float64))

    def forward(self, x):
        mean = self.body(x)
        return Independent(Normal(mean, self.log_std.exp().expand_as(mean)), 1)


class HeteroscedasticNet(nn.Module):
    """Mean and σ both depend on the input."""

    def __init__(self, generator):
        super().__init__()
        self.body = layer(3, 4, generator)

    def forward(self, x):
        mean, raw = self.body(x).chunk(2, dim=-1)
        return Independent(Normal(mean, nn.functional.softplus(raw)), 1)


NETWORKS = [CategoricalNet, ProbabilitiesNet, GaussianNet, HeteroscedasticNet]


@pytest.fixture(params=NETWORKS, ids=lambda network: network.__name__)
def network(request, generator):
    return request.param(generator)


@pytest.fixture
def x(generator):
    return torch.randn(7, 3, generator=generator, dtype=torch.float64)


def jacobian(function, parameters):
    """Dense (m, n) by reverse mode, row by row."""
    outputs = function().reshape(-1)
    rows = [
        flatten(
            torch.zeros_like(p) if g is None else g
            for p, g in zip(
                parameters,
                torch.autograd.grad(y, parameters, retain_graph=True, allow_unused=True),
                strict=True,
            )
        )
        for y in outputs
    ]
    return torch.stack(rows)


def dense_fisher(network, x):
    """E_a[score scoreᵀ], exactly: a sum over actions, or Gauss-Hermite nodes for a normal."""
    parameters = list(network.parameters())
    total = 0
    for sample in x:
        distribution = network(sample[None])
        if isinstance(distribution, Categorical):
            actions = [torch.tensor([a]) for a in range(distribution.probs.shape[-1])]
            weights = distribution.probs.detach()[0]
        else:
            actions, weights = hermite(distribution)
        for action, weight in zip(actions, weights, strict=True):
            score = jacobian(lambda a=action, d=distribution: d.log_prob(a), parameters)[0]
            total = total + weight * torch.outer(score, score)
    return total / len(x)


def hermite(distribution, order=5):
    """Nodes and weights that integrate polynomials of degree < 10 in each action exactly."""
    import numpy as np

    points, masses = np.polynomial.hermite_e.hermegauss(order)
    nodes, weights = torch.tensor(points), torch.tensor(masses / masses.sum())
    base = distribution.base_dist
    grid = torch.cartesian_prod(nodes, nodes)
    actions = base.loc.detach() + base.scale.detach() * grid
    return list(actions[:, None]), torch.cartesian_prod(weights, weights).prod(dim=1)


def kl_hessian(network, x):
    """Hessian of the mean KL(π_old ‖ π_θ) at θ_old, by double backward through the network."""
    parameters = list(network.parameters())
    old = network(x)
    old = (
        Categorical(logits=old.logits.detach())
        if isinstance(old, Categorical)
        else Independent(Normal(old.base_dist.loc.detach(), old.base_dist.scale.detach()), 1)
    )
    kl = kl_divergence(old, network(x)).mean()
    gradients = torch.autograd.grad(kl, parameters, create_graph=True)
    return jacobian(lambda: torch.cat([g.reshape(-1) for g in gradients]), parameters)


def test_equals_the_expected_outer_product_of_scores(network, x):
    F = Fisher(network(x), network.parameters()).to_dense()
    assert torch.allclose(F, dense_fisher(network, x), rtol=1e-10, atol=1e-10)


def test_equals_the_hessian_of_the_kl_divergence(network, x):
    F = Fisher(network(x), network.parameters()).to_dense()
    assert torch.allclose(F, kl_hessian(network, x), rtol=1e-10, atol=1e-10)


def test_agrees_with_sampled_scores(network, x):
    """Monte Carlo over actions: within five standard errors, entry by entry."""
    parameters = list(network.parameters())
    F = Fisher(network(x), parameters).to_dense()
    draws = 400
    with torch.random.fork_rng():
        torch.manual_seed(0)
        actions = network(x).sample((draws,))
    samples = []
    for index in range(len(x)):
        distribution = network(x[index : index + 1])
        scores = jacobian(
            lambda d=distribution, i=index: d.log_prob(actions[:, i]), parameters
        )  # (draws, n)
        samples.append(scores[:, :, None] * scores[:, None, :])
    outer = torch.stack(samples).mean(dim=0)
    error = outer.std(dim=0) / draws**0.5
    assert ((outer.mean(dim=0) - F).abs() <= 5 * error + 1e-12).all()


def test_is_symmetric_and_positive_semidefinite(network, x):
    F = Fisher(network(x), network.parameters()).to_dense()
    assert torch.allclose(F, F.mT, rtol=0, atol=1e-14)
    eigenvalues = torch.linalg.eigvalsh(F)
    assert eigenvalues[0] >= -1e-14 * eigenvalues[-1]


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 6, 7, 100, None])
def test_is_independent_of_the_chunk_size(network, x, chunk_size):
    whole = Fisher(network(x), network.parameters()).to_dense()
    chunked = Fisher(network, network.parameters(), data=x, chunk_size=chunk_size)
    assert torch.allclose(chunked.to_dense(), whole, rtol=1e-13, atol=1e-15)


def test_chunked_products_run_the_network_once_per_chunk_for_all_columns(x, generator):
    network = CategoricalNet(generator)
    calls = []

    def forward(chunk):
        calls.append(len(chunk))
        return network(chunk)

    F = Fisher(forward, network.parameters(), data=x, chunk_size=3)
    assert calls == []
    F @ torch.ones(F.shape[0], 5, dtype=torch.float64)
    assert calls == [3, 3, 1]
    kept = Fisher(forward, network.parameters(), data=x)
    kept @ torch.ones(F.shape[0], dtype=torch.float64)
    kept @ torch.ones(F.shape[0], dtype=torch.float64)
    assert calls == [3, 3, 1, 7]


def test_data_may_be_a_mapping_or_a_sequence(x, generator):
    network = CategoricalNet(generator)
    whole = Fisher(network(x), network.parameters()).to_dense()
    mapped = Fisher(lambda d: network(d["x"]), network.parameters(), data={"x": x}, chunk_size=2)
    listed = Fisher(lambda d: network(d[0]), network.parameters(), data=[x], chunk_size=2)
    assert torch.allclose(mapped.to_dense(), whole)
    assert torch.allclose(listed.to_dense(), whole)


def test_dropout_is_the_same_in_every_chunked_product(x, generator):
    network = CategoricalNet(generator)
    parameters = list(network.parameters())

    def forward(chunk):
        hidden = nn.functional.dropout(network.body[1](network.body[0](chunk)), 0.5)
        return Categorical(logits=network.body[2](hidden))

    F = Fisher(forward, parameters, data=x, chunk_size=3)
    v = torch.ones(F.shape[0], dtype=torch.float64)
    assert torch.equal(F @ v, F @ v)


def test_works_and_stays_silent_under_no_grad(network, x):
    reference = Fisher(network(x), network.parameters()).to_dense()
    with torch.no_grad():
        F = Fisher(network, network.parameters(), data=x, chunk_size=4)
        assert torch.allclose(F.to_dense(), reference)
        assert not torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in network.parameters())


def test_float32_agrees_with_float64_to_its_own_rounding(network, x):
    exact = Fisher(network(x), network.parameters()).to_dense()
    network.float()
    rounded = Fisher(network(x.float()), network.parameters()).to_dense()
    assert rounded.dtype == torch.float32
    assert torch.allclose(rounded.double(), exact, rtol=0, atol=1e-5 * float(exact.abs().max()))


def test_frozen_unused_empty_and_tied_parameters(x, generator):
    network = CategoricalNet(generator)
    weight: Any = network.body[0].weight
    n = flatten(network.parameters()).numel()
    full = Fisher(network(x), network.parameters()).to_dense()
    extra = [torch.ones(2, dtype=torch.float64, requires_grad=True),
             torch.ones(0, 3, dtype=torch.float64, requires_grad=True)]  # fmt: skip
    padded = Fisher(network(x), [*network.parameters(), *extra]).to_dense()
    assert torch.equal(padded[:n, :n], full)
    assert not padded[n:].any()
    assert not padded[:, n:].any()

    weight.requires_grad_(False)
    frozen = Fisher(network(x), network.parameters()).to_dense()
    k = weight.numel()
    assert not frozen[:k].any()
    assert torch.allclose(frozen[k:, k:], full[k:, k:], rtol=1e-13, atol=1e-15)

    shared = torch.randn(3, 3, generator=generator, dtype=torch.float64).requires_grad_()

    def tied(chunk):
        return Categorical(logits=torch.tanh(chunk @ shared) @ shared)

    holder: Any = nn.Module()
    holder.shared = nn.Parameter(shared.detach().clone())
    holder.forward = lambda chunk: Categorical(
        logits=torch.tanh(chunk @ holder.shared) @ holder.shared
    )
    tied_fisher = Fisher(tied(x), [shared]).to_dense()
    assert torch.allclose(tied_fisher, kl_hessian(holder, x), rtol=1e-10, atol=1e-10)


@given(st.floats(-4, -2), st.integers(0, 99))
def test_kl_is_half_the_quadratic_form_to_third_order(log_step, seed):
    """Theory, line 6: KL(θ, θ + s) = ½ sᵀF s + O(‖s‖³): a tenth of s, a thousandth of the error."""
    generator = torch.Generator().manual_seed(seed)
    network = CategoricalNet(generator)
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    parameters = list(network.parameters())
    theta = flatten(parameters)
    s = torch.randn(len(theta), generator=generator, dtype=torch.float64)
    s *= 10**log_step / s.norm()
    quadratic = 0.5 * s @ (Fisher(network(x), parameters) @ s)
    old = Categorical(logits=network(x).logits.detach())
    with torch.no_grad():
        assign(parameters, theta + s)
        kl = kl_divergence(old, network(x)).mean()
        assign(parameters, theta - s)
        mirrored = kl_divergence(old, network(x)).mean()
    # The odd orders cancel in the mean of both sides, which leaves the fourth.
    assert abs(kl - quadratic) <= 50 * float(s.norm()) ** 3
    assert abs((kl + mirrored) / 2 - quadratic) <= 500 * float(s.norm()) ** 4 + 1e-16


def test_the_error_of_the_quadratic_form_has_slope_three(network, x, generator):
    """log |KL − ½ sᵀF s| over log ‖s‖, whatever the family."""
    parameters = list(network.parameters())
    theta = flatten(parameters)
    direction = torch.randn(len(theta), generator=generator, dtype=torch.float64)
    quadratic = 0.5 * direction @ (Fisher(network(x), parameters) @ direction)
    old = copy.deepcopy(network)(x)
    lengths, errors = [1e-2 / 2**k for k in range(5)], []
    with torch.no_grad():
        for length in lengths:
            assign(parameters, theta + length * direction)
            kl = kl_divergence(old, network(x)).mean()
            errors.append(abs(float(kl - length**2 * quadratic)))
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(abs(slope - 3) < 0.1 for slope in slopes), slopes


def test_parameters_changed_in_place_are_refused_with_the_cure(x, generator):
    network = CategoricalNet(generator)
    parameters = list(network.parameters())
    F = Fisher(network(x), parameters)
    assign(parameters, flatten(parameters) + 1)
    with pytest.raises(RuntimeError, match="build a new operator"):
        F @ flatten(parameters)


def test_a_freed_graph_is_refused_with_the_cure(x, generator):
    network = CategoricalNet(generator)
    distribution = network(x)
    distribution.logits.sum().backward()
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        Fisher(distribution, network.parameters())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda n, x: Fisher(n, n.parameters()), ValueError, "needs data=x"),
        (lambda n, x: Fisher(n(x), n.parameters(), data=x), ValueError, "forward function"),
        (lambda n, x: Fisher(n, n.parameters(), data=x, chunk_size=0), ValueError, "at least 1"),
        (
            lambda n, x: Fisher(n, n.parameters(), data=(x, x[:2]), chunk_size=2),
            ValueError,
            r"one length, got \[2, 7\]",
        ),
        (lambda n, x: Fisher(n, n.parameters(), data=x[:0], chunk_size=2), ValueError, "empty"),
        (lambda n, x: Fisher(normal(n, x[:0]), n.parameters()), ValueError, "empty"),
        (
            lambda n, x: Fisher(n.body, n.parameters(), data=x),
            TypeError,
            "expected a torch.distributions",
        ),
        (lambda n, x: Fisher(n(x), []), ValueError, "no tensors"),
        (lambda n, x: Fisher(n(x), [*n.parameters()] * 2), ValueError, "listed twice"),
        (lambda n, x: Fisher(n(x), [torch.ones(2, requires_grad=True)]), ValueError, "none of"),
        (lambda n, x: Fisher(n(x), [torch.ones(2)]), ValueError, "requires_grad=True"),
    ],
)
def test_errors_say_what_came_and_what_was_wanted(make, error, message, x, generator):
    with pytest.raises(error, match=message):
        make(CategoricalNet(generator), x)
