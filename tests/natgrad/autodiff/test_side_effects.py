"""Building and using an operator changes nothing else, and its randomness is frozen."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from natgrad.curvature import (
    EmpiricalFisher,
    Fisher,
    Gram,
    Hessian,
    NotTwiceDifferentiable,
    twice_differentiable,
)
from natgrad.flat import flatten
from natgrad.testing.networks import categorical, make_network

DOUBLE = torch.float64


@pytest.fixture
def network(generator):
    with torch.random.fork_rng():
        network = nn.Sequential(
            nn.Linear(3, 4, dtype=DOUBLE), nn.BatchNorm1d(4, dtype=DOUBLE), nn.Dropout(0.5),
            nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3, dtype=DOUBLE)),
        )  # fmt: skip
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=DOUBLE))
    return network


@pytest.fixture
def x(generator):
    return torch.randn(12, 3, generator=generator, dtype=DOUBLE)


def mean_loss(network):
    return lambda x: network(x).square().mean()


OPERATORS = {
    "fisher": lambda n, x, m: Fisher(categorical(n), n.parameters(), data=x, chunk_size=m),
    "empirical": lambda n, x, m: EmpiricalFisher(
        lambda x: n(x).logsumexp(-1), n.parameters(), data=x, chunk_size=m
    ),
    "hessian": lambda n, x, m: Hessian(mean_loss(n), n.parameters(), data=x, chunk_size=m),
    "gram": lambda n, x, m: Gram(n, list(n.parameters()), data=x),
}


@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("operator", OPERATORS)
def test_leaves_everything_as_it_was(operator, chunk_size, network, x, generator):
    parameters = list(network.parameters())
    for index, parameter in enumerate(parameters):
        parameter.grad = torch.full_like(parameter, float(index))
    parameters[0].requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    buffers = dict(network.named_buffers())
    random_state = torch.get_rng_state()

    A = OPERATORS[operator](network, x, chunk_size)
    v = torch.randn(A.shape[0], generator=generator, dtype=DOUBLE)
    first = A @ v
    with torch.no_grad():
        assert torch.equal(A @ v, first)  # the same dropout in every product
    with torch.inference_mode():
        assert torch.equal((A @ v).clone(), first)

    assert not first.requires_grad
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(buffer is buffers[name] for name, buffer in network.named_buffers())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.is_grad_enabled()
    assert network.training
    assert not parameters[0].requires_grad
    assert all((p.grad == index).all() for index, p in enumerate(parameters))


def test_randomness_is_that_of_the_next_forward_pass(network, x):
    """So that a loss computed next to the operator sees the same masks."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        A = Fisher(categorical(network), network.parameters(), data=x)
        expected = Fisher(categorical(network)(x), network.parameters())
        v = torch.ones(A.shape[0], dtype=DOUBLE)
        assert torch.allclose(A @ v, expected @ v, rtol=1e-10)


@pytest.mark.parametrize("build", [torch.no_grad, torch.inference_mode])
def test_is_built_under_no_grad_and_inference_mode(build, generator):
    network, x = make_network("mlp", generator)
    expected = Fisher(categorical(network), network.parameters(), data=x).to_dense()
    for chunk_size in (None, 3):
        with build():
            A = Fisher(categorical(network), network.parameters(), data=x, chunk_size=chunk_size)
            assert torch.allclose(A.to_dense(), expected, rtol=1e-10, atol=1e-12)


def test_outputs_of_a_fused_kernel_are_refused_with_a_cure_that_works(generator):
    network, x = make_network("attention", generator)
    parameters = list(network.parameters())
    v = torch.ones(len(flatten(parameters)), dtype=DOUBLE)
    for outputs in (
        lambda: Fisher(categorical(network)(x), parameters),
        lambda: Hessian(network(x).square().mean(), parameters),
    ):
        with pytest.raises(NotTwiceDifferentiable, match="twice_differentiable"):
            outputs() @ v
        with twice_differentiable():
            A = outputs()
        assert torch.isfinite(A @ v).all()


def test_sub_sampling_draws_a_fraction_once_and_repeatably(generator):
    network, x = make_network("mlp", generator)

    def operator(seed, **settings):
        g = torch.Generator().manual_seed(seed)
        return Fisher(
            categorical(network), network.parameters(), data=x, generator=g, **settings
        ).to_dense()

    index = torch.randperm(7, generator=torch.Generator().manual_seed(5))[:3]
    expected = Fisher(categorical(network), network.parameters(), data=x[index]).to_dense()
    for chunk_size in (None, 2):
        drawn = operator(5, fraction=0.4, chunk_size=chunk_size)
        assert torch.allclose(drawn, expected, rtol=1e-10, atol=1e-12)
    whole = Fisher(categorical(network), network.parameters(), data=x).to_dense()
    assert torch.equal(operator(6, fraction=1.0), whole)
    weights = torch.arange(7.0)
    weighted = operator(5, fraction=0.4, weights=weights)
    by_hand = Fisher(
        categorical(network), network.parameters(), data=x[index], weights=weights[index]
    )
    assert torch.allclose(weighted, by_hand.to_dense(), rtol=1e-10, atol=1e-12)


def test_the_mean_over_uneven_chunks_of_a_mean_loss_is_the_mean(generator):
    network, x = make_network("mlp", generator)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0])

    def loss(data):
        return F.cross_entropy(network(data["x"]), data["labels"])

    data = {"x": x, "labels": labels}
    whole = Hessian(loss(data), network.parameters()).to_dense()
    for chunk_size in (1, 3, 5, 7, 50):
        H = Hessian(loss, network.parameters(), data=data, chunk_size=chunk_size)
        assert torch.allclose(H.to_dense(), whole, rtol=1e-10, atol=1e-12)


def test_a_chunk_that_touches_no_parameter_counts_as_zero():
    weight = torch.ones(2, dtype=DOUBLE, requires_grad=True)

    def forward(x):  # the first half goes through, the second is a constant
        return (x * weight).sum(-1) if bool(x[0, 0] > 0) else x.sum(-1)

    x = torch.tensor([[1.0, 2.0], [-1.0, 3.0]], dtype=DOUBLE)
    E = EmpiricalFisher(forward, [weight], data=x, chunk_size=1)
    assert E.to_dense().tolist() == [[0.5, 1.0], [1.0, 2.0]]
    none = EmpiricalFisher(forward, [weight], data=-x.abs(), chunk_size=1)
    with pytest.raises(ValueError, match="none of the 1 parameters"):
        none @ torch.ones(2, dtype=DOUBLE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fraction": 0.0}, r"\(0, 1\], got 0.0"),
        ({"fraction": 0.5}, "needs generator"),
        ({"chunk_size": 0}, "at least 1, got 0"),
        ({"weights": torch.ones(3)}, r"one entry a sample, 7, got \(3,\)"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message, generator):
    network, x = make_network("mlp", generator)
    with pytest.raises(ValueError, match=message):
        Fisher(categorical(network), network.parameters(), data=x, **settings)


@pytest.mark.parametrize("kind", ["mlp", "attention"])
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_an_operator_belongs_to_one_point_in_every_form(kind, chunk_size, generator):
    network, x = make_network(kind, generator)
    for make in (Fisher, None):
        A = (
            Fisher(categorical(network), network.parameters(), data=x, chunk_size=chunk_size)
            if make
            else Gram(network, network.parameters(), data=x)
        )
        with torch.no_grad():
            next(network.parameters()).mul_(2)
        with pytest.raises(RuntimeError, match="build a new operator"):
            A @ torch.ones(A.shape[0], dtype=DOUBLE)


def test_gram_falls_back_from_fused_kernels(generator):
    network, x = make_network("attention", generator)
    K = Gram(network, network.parameters(), data=x)
    u = torch.ones(K.shape[0], dtype=DOUBLE)
    assert torch.allclose(K @ u, K.to_dense() @ u, rtol=1e-9)


def test_per_sample_operators_refuse_reduced_outputs(generator):
    network, x = make_network("mlp", generator)
    with pytest.raises(ValueError, match="for each of 7 samples"):
        EmpiricalFisher(lambda x: network(x).mean(), network.parameters(), data=x)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"x": torch.ones(3, 3), "mask": None}, "got NoneType"),
        ((torch.ones(3, 3), 3), "got int"),
        ("abc", "got str"),
    ],
)
def test_data_that_cannot_be_cut_are_refused(data, message, generator):
    network, _ = make_network("mlp", generator)
    with pytest.raises(TypeError, match=message):
        Fisher(categorical(network), network.parameters(), data=data, chunk_size=2)


def test_no_columns_are_no_columns(generator):
    network, x = make_network("mlp", generator)
    A = Fisher(categorical(network), network.parameters(), data=x)
    assert (A @ torch.zeros(38, 0, dtype=DOUBLE)).shape == (38, 0)


def test_scalars_only_for_the_hessian(generator):
    network, x = make_network("mlp", generator)
    with pytest.raises(ValueError, match=r"scalar loss, got \(7, 3\).*\.mean"):
        Hessian(network(x), network.parameters())
    with pytest.raises(ValueError, match="none of the 4 parameters"):
        Hessian(torch.zeros(()), network.parameters())
    weight = torch.ones(2, requires_grad=True)
    assert Hessian(weight.sum(), [weight]).to_dense().tolist() == [[0, 0], [0, 0]]  # linear
