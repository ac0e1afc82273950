"""Every operator equals the dense matrix that autograd makes of its definition, on every kind of
network: O6 of the properties an operator must have, and the side effects it must not (O9)."""

from typing import Any

import pytest
import torch
from torch.func import functional_call, jacrev
from torch.nn import functional as F

from natgrad.curvature import (
    EmpiricalFisher,
    Fisher,
    GaussNewton,
    Gram,
    Hessian,
    twice_differentiable,
)
from natgrad.curvature.metrics import (
    binary_cross_entropy,
    convex_loss,
    cross_entropy,
    root_outputs,
    squared_error,
)
from natgrad.testing.networks import NETWORKS, categorical, gaussian, make_network

TOLERANCE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}
CHUNKS = [None, 2, 100]


@pytest.fixture(params=NETWORKS)
def problem(request, generator):
    network, x = make_network(request.param, generator)
    assert sum(parameter.numel() for parameter in network.parameters()) <= 60
    return network, x


def jacobian(network, function, x):
    """d function(network(x)) / dθ as a matrix (outputs, n), by torch.func."""
    values = {name: value.detach() for name, value in network.named_parameters()}
    with twice_differentiable():
        pieces = jacrev(lambda p: function(functional_call(network, p, (x,))).reshape(-1))(values)
    return torch.cat([piece.reshape(len(piece), -1) for piece in pieces.values()], dim=1)


def hessian(network, loss, x):
    """∇² loss(network(x)) (n, n), row by row."""
    parameters = list(network.parameters())
    with twice_differentiable():
        gradient = torch.autograd.grad(
            loss(network(x)), parameters, create_graph=True, materialize_grads=True
        )
    rows = [
        torch.autograd.grad(entry, parameters, retain_graph=True, materialize_grads=True)
        for piece in gradient
        for entry in piece.reshape(-1)
    ]
    return torch.stack([torch.cat([piece.reshape(-1) for piece in row]) for row in rows])


def targets(x, generator):
    return torch.randint(0, 3, (len(x),), generator=generator)


@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_fisher_of_a_categorical(problem, chunk_size):
    network, x = problem
    F_ = Fisher(categorical(network), network.parameters(), data=x, chunk_size=chunk_size)
    J = jacobian(network, lambda y: y, x).reshape(len(x), 3, -1)
    p = network(x).softmax(-1).detach()
    M = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    assert torch.allclose(F_.to_dense(), (J.mT @ M @ J).mean(0), **TOLERANCE)


@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_fisher_of_a_normal(problem, chunk_size):
    network, x = problem
    F_ = Fisher(gaussian(network), network.parameters(), data=x, chunk_size=chunk_size)
    scale = F.softplus(network(x)[:, 1:]).detach()
    J_mean = jacobian(network, lambda y: y[:, :2], x)
    J_scale = jacobian(network, lambda y: F.softplus(y[:, 1:]), x)
    weights = scale.square().reciprocal().reshape(-1, 1)
    dense = J_mean.mT @ (weights * J_mean) + J_scale.mT @ (2 * weights * J_scale)
    assert torch.allclose(F_.to_dense(), dense / len(x), **TOLERANCE)


@pytest.mark.parametrize("chunk_size", CHUNKS)
@pytest.mark.parametrize(
    ("metric", "curvature"),
    [
        (squared_error, lambda y: 2 * torch.eye(y.numel(), dtype=y.dtype) / y.numel()),
        (
            binary_cross_entropy,
            lambda y: torch.diag((y.sigmoid() * (1 - y.sigmoid())).reshape(-1)) / y.numel(),
        ),
        (
            convex_loss(lambda y: (y.exp() - y).sum()),
            lambda y: torch.diag(y.exp().reshape(-1)) / len(y),
        ),
    ],
    ids=["squared error", "binary cross-entropy", "any convex loss"],
)
def test_gauss_newton(problem, metric, curvature, chunk_size):
    network, x = problem
    G = GaussNewton(network, network.parameters(), metric, data=x, chunk_size=chunk_size)
    J = jacobian(network, lambda y: y, x)
    expected = J.mT @ curvature(network(x).detach()) @ J
    assert torch.allclose(G.to_dense(), expected, **TOLERANCE)


def test_gauss_newton_of_cross_entropy_is_the_fisher_matrix(problem):
    network, x = problem
    parameters = list(network.parameters())
    G = GaussNewton(network, parameters, cross_entropy, data=x)
    fisher = Fisher(categorical(network), parameters, data=x)
    assert torch.allclose(G.to_dense(), fisher.to_dense(), **TOLERANCE)


@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_empirical_fisher(problem, chunk_size, generator):
    network, x = problem
    labels = targets(x, generator)

    def log_probs(data):
        return -F.cross_entropy(network(data[0]), data[1], reduction="none")

    E = EmpiricalFisher(log_probs, network.parameters(), data=(x, labels), chunk_size=chunk_size)
    g = jacobian(network, lambda y: F.cross_entropy(y, labels, reduction="none"), x)
    assert torch.allclose(E.to_dense(), g.mT @ g / len(x), **TOLERANCE)


@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_hessian(problem, chunk_size, generator):
    network, x = problem
    labels = targets(x, generator)
    H = Hessian(
        lambda data: F.cross_entropy(network(data[0]), data[1]),
        network.parameters(), data=(x, labels), chunk_size=chunk_size,
    )  # fmt: skip
    expected = hessian(network, lambda y: F.cross_entropy(y, labels), x)
    assert torch.allclose(H.to_dense(), expected, **TOLERANCE)


@pytest.mark.parametrize("by_layer", [False, True])
def test_gram_of_residuals(problem, by_layer):
    network, x = problem
    parameters = list(network.parameters())
    K = Gram(network, parameters, data=x, model=network if by_layer else None)
    J = jacobian(network, lambda y: y, x)
    u = torch.linspace(-1, 1, len(J), dtype=torch.float64)
    with twice_differentiable():
        product = Gram(network(x), parameters) @ u
    assert torch.allclose(product, J @ (J.mT @ u), **TOLERANCE)
    assert torch.allclose(K.to_dense(), J @ J.mT, **TOLERANCE)
    assert torch.allclose(K @ u, J @ (J.mT @ u), **TOLERANCE)
    assert torch.allclose(K.transpose(u), J.mT @ u, **TOLERANCE)


def test_root_outputs_make_the_fisher_matrix_a_gram_matrix(problem):
    network, x = problem
    parameters = list(network.parameters())
    for likelihood in (categorical(network), gaussian(network)):
        with twice_differentiable():
            roots = root_outputs(likelihood(x))
        rows = [
            torch.autograd.grad(y, parameters, retain_graph=True, materialize_grads=True)
            for y in roots.reshape(-1)
        ]
        J = torch.stack([torch.cat([piece.reshape(-1) for piece in row]) for row in rows])
        dense = Fisher(likelihood, parameters, data=x).to_dense()
        assert torch.allclose(J.mT @ J / len(x), dense, **TOLERANCE)
