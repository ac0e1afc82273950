"""Products with a Jacobian, and its matrix, beside torch.func's."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from natgrad.autodiff.differentiation import twice_differentiable
from natgrad.autodiff.jacobian import ROWS, Jacobian
from natgrad.flat import Slots, flatten
from natgrad.testing.networks import NETWORKS, make_network

DOUBLE = torch.float64
CLOSE: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-13}


def dense(network, x):
    """(m, n) by torch.func, parameter by parameter in the order of the vector."""
    named = dict(network.named_parameters())
    found = jacrev(lambda values: functional_call(network, values, (x,)).reshape(-1))(named)
    return torch.cat([found[name].flatten(1) for name in named], dim=1).detach()


def random_(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


@pytest.mark.parametrize("samples", [1, None], ids=["m < n", "m of the whole batch"])
@pytest.mark.parametrize("kind", ["mlp", "convolution", "embedding", "lstm"])
def test_is_torch_funcs(kind, samples, generator):
    network, x = make_network(kind, generator)
    x = x[:samples]
    J = Jacobian((network(x),), Slots(network.parameters()))
    expected = dense(network, x)
    torch.testing.assert_close(J.to_dense(), expected, **CLOSE)
    v, u = random_(expected.shape[1]), random_(expected.shape[0], seed=1)
    torch.testing.assert_close(J.forward(v)[0].reshape(-1), expected @ v, **CLOSE)
    torch.testing.assert_close(J.transpose((u.view_as(network(x)),)), expected.mT @ u, **CLOSE)


@pytest.mark.parametrize("kind", NETWORKS)
def test_both_directions_are_adjoint(kind, generator):
    network, x = make_network(kind, generator)
    with twice_differentiable():
        y = network(x)
    J = Jacobian((y,), Slots(network.parameters()))
    v, u = random_(sum(p.numel() for p in network.parameters())), random_(*y.shape, seed=1)
    left, right = (J.forward(v)[0] * u).sum(), J.transpose((u,)) @ v
    torch.testing.assert_close(left, right, **CLOSE)


def sizes(m, n):
    """A function of n parameters with m outputs."""
    weight = nn.Parameter(random_(n))
    A = random_(m, n, seed=1)
    y = (A @ weight.sin()).tanh()
    return y, weight, (1 - y.square()).detach().unsqueeze(1) * A * weight.detach().cos()


@pytest.mark.parametrize(
    ("m", "n"),
    [
        (1, 1), (ROWS, 2 * ROWS), (ROWS + 1, 2 * ROWS), (3 * ROWS - 1, 3 * ROWS),
        (2 * ROWS, ROWS), (2 * ROWS, ROWS + 1), (3 * ROWS, 3 * ROWS - 1),
    ],
)  # fmt: skip
def test_blocks_of_rows_or_of_columns_fit_together(m, n):
    y, weight, expected = sizes(m, n)
    torch.testing.assert_close(Jacobian((y,), Slots([weight])).to_dense(), expected, **CLOSE)


@pytest.fixture(params=[3, 40], ids=["few outputs", "many outputs"])
def pieces(request):
    """Outputs with and without a graph, parameters of every lot, and the matrix by hand."""
    k = request.param
    used, unused, linear = (nn.Parameter(random_(2, 3, seed=i)) for i in range(3))
    frozen = nn.Parameter(random_(4), requires_grad=False)
    stranger = nn.Parameter(random_(2))  # has a graph, but is none of the parameters
    B = random_(k, 6, seed=5)
    outputs = (
        (B @ used.flatten().exp()).reshape(1, k),
        random_(2),
        (B @ linear.flatten()) + frozen.sum(),
        stranger * 2,
    )
    zeros = torch.zeros
    rows = [
        torch.cat([B * used.detach().flatten().exp(), zeros(k, 16)], dim=1),
        zeros(2, 22),
        torch.cat([zeros(k, 16), B], dim=1),
        zeros(2, 22),
    ]
    return outputs, [used, unused, frozen, linear], torch.cat([r.double() for r in rows])


def test_what_is_frozen_unused_or_constant_has_zeros(pieces):
    outputs, parameters, expected = pieces
    J = Jacobian(outputs, Slots(parameters))
    assert J.reaches
    torch.testing.assert_close(J.to_dense(), expected, **CLOSE)
    v, u = random_(expected.shape[1]), random_(expected.shape[0], seed=1)
    images = J.forward(v)
    assert [image.shape for image in images] == [output.shape for output in outputs]
    torch.testing.assert_close(flatten(images), expected @ v, **CLOSE)
    cotangents = [
        piece.view_as(output)
        for piece, output in zip(u.split([o.numel() for o in outputs]), outputs, strict=True)
    ]
    torch.testing.assert_close(J.transpose(cotangents), expected.mT @ u, **CLOSE)


@pytest.mark.parametrize("m", [1, 9])
def test_outputs_that_reach_no_parameter(m):
    parameters = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(1), requires_grad=False)]
    for output in (torch.ones(m), nn.Parameter(torch.ones(m)) * 2):
        J = Jacobian((output,), Slots(parameters))
        assert not J.reaches
        assert torch.equal(J.to_dense(), torch.zeros(m, 4))
        assert torch.equal(J.forward(torch.ones(4))[0], torch.zeros(m))
        assert torch.equal(J.transpose((torch.ones(m),)), torch.zeros(4))


@pytest.mark.parametrize(("m", "n"), [(3, 5), (5, 3)])
def test_no_graph_and_no_gradient_is_left(m, n):
    y, weight, _ = sizes(m, n)
    with torch.no_grad():
        J = Jacobian((y,), Slots([weight]))
        matrix = J.to_dense()
    assert not matrix.requires_grad
    assert weight.grad is None
    torch.testing.assert_close(J.to_dense(), matrix, rtol=0.0, atol=0.0)
    y.sum().backward()  # the caller's graph is whole
    assert weight.grad is not None
