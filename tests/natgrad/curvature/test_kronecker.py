"""K-FAC and E-KFAC where theory says they are exact, and their algebra everywhere."""

import contextlib
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, Normal

from natgrad.curvature import DampingSplit, Fisher, Kronecker, Sharing
from natgrad.solvers import cg
from natgrad.solvers.preconditioners import kronecker
from natgrad.testing.networks import NETWORKS, categorical, gaussian, make_network

DOUBLE = torch.float64
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}


def fixed_normal(network):
    """Unit deviation: a metric that does not depend on the input."""
    return lambda x: Independent(Normal(network(x), torch.ones((), dtype=DOUBLE)), 1)


def random_(network, generator):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=DOUBLE))
    return network


def deep_linear(generator, bias=False):
    with torch.random.fork_rng():
        layers = [nn.Linear(a, b, bias=bias, dtype=DOUBLE) for a, b in ((3, 4), (4, 2))]
    return random_(nn.Sequential(*layers), generator)


def blocks_of(dense, network):
    """The diagonal blocks of a dense matrix, one a module with parameters of its own."""
    masked, start = torch.zeros_like(dense), 0
    for module in network.modules():
        size = sum(p.numel() for p in module.parameters(recurse=False))
        span = slice(start, start + size)
        masked[span, span] = dense[span, span]
        start += size
    return masked


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("kind", ["mlp"])
@pytest.mark.parametrize("likelihood", [categorical, gaussian])
def test_is_the_fisher_block_for_one_sample(likelihood, kind, corrected, generator):
    network, x = make_network(kind, generator)
    K = Kronecker(network, x[:1], forward=likelihood(network), corrected=corrected)
    dense = Fisher(likelihood(network), network.parameters(), data=x[:1]).to_dense()
    assert torch.allclose(K.to_dense(), blocks_of(dense, network), **CLOSE)


class PooledLinear(nn.Module):
    """Weights shared over positions, one output a sample by averaging: the setting of REDUCE."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4, bias=False, dtype=DOUBLE)
        self.second = nn.Linear(4, 2, bias=False, dtype=DOUBLE)

    def forward(self, x):
        return self.second(self.first(x)).mean(1)


class PooledConvolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(2, 3, 2, bias=False, dtype=DOUBLE)

    def forward(self, x):
        return self.convolution(x).mean((2, 3))


class PooledWords(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(4, 3, dtype=DOUBLE)

    def forward(self, words):
        return self.embedding(words).mean(1)


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("kind", [PooledLinear, PooledConvolution])
def test_reduce_is_exact_where_a_linear_network_averages_positions(kind, corrected, generator):
    with torch.random.fork_rng():
        network = kind()
    random_(network, generator)
    shape = (6, 5, 3) if kind is PooledLinear else (6, 2, 3, 4)
    x = torch.randn(shape, generator=generator, dtype=DOUBLE)
    likelihood = fixed_normal(network)
    K = Kronecker(network, x, forward=likelihood, sharing=Sharing.REDUCE, corrected=corrected)
    dense = Fisher(likelihood, network.parameters(), data=x).to_dense()
    assert torch.allclose(K.to_dense(), blocks_of(dense, network), **CLOSE)


def test_the_embedding_factor_is_the_diagonal_of_word_frequencies(generator):
    with torch.random.fork_rng():
        network = random_(PooledWords(), generator)
    words = torch.randint(0, 4, (8, 1), generator=generator)
    likelihood = fixed_normal(network)
    for corrected in (False, True):
        K = Kronecker(network, words, forward=likelihood, corrected=corrected)
        dense = Fisher(likelihood, network.parameters(), data=words).to_dense()
        assert torch.allclose(K.to_dense(), dense, **CLOSE)


def test_expand_is_exact_for_outputs_at_every_position(generator):
    """Theory's other setting: N · R independent outputs, as tokens have them."""
    network = deep_linear(generator, bias=True)
    x = torch.randn(4, 5, 3, generator=generator, dtype=DOUBLE)
    K = Kronecker(
        network, x, forward=fixed_normal(network), samples=1000, generator=generator
    )  # fmt: skip
    dense = Fisher(fixed_normal(network), network.parameters(), data=x).to_dense()
    error = (K.to_dense() - blocks_of(dense, network)).norm() / dense.norm()
    assert error < 5 * (2 / (20 * 1000)) ** 0.5  # of G's entries: five standard errors


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("corrected", [False, True])
def test_is_symmetric_positive_semidefinite_and_solves_its_own_products(kind, corrected, generator):
    network, x = make_network(kind, generator)
    K = Kronecker(network, x, forward=categorical(network), corrected=corrected)
    dense = K.to_dense()
    assert torch.allclose(dense, dense.mT, **CLOSE)
    eigenvalues = torch.linalg.eigvalsh(dense)
    assert eigenvalues[0] >= -1e-12 * eigenvalues[-1]
    b = torch.randn(len(dense), 3, generator=generator, dtype=DOUBLE)
    for damping in (0.3, 1e-4):
        x_ = K.solve(b, damping=damping)
        assert torch.allclose(K.damped(damping) @ x_, b, rtol=1e-7, atol=1e-8)
        assert torch.equal(K.solve(b[:, 0], damping=damping), x_[:, 0]) or torch.allclose(
            K.solve(b[:, 0], damping=damping), x_[:, 0], **CLOSE
        )


def test_corrected_is_never_further_from_the_fisher_block_than_uncorrected(generator):
    """E-KFAC's diagonal is the best in its basis, in Frobenius norm."""
    network, x = make_network("mlp", generator)
    dense = blocks_of(
        Fisher(categorical(network), network.parameters(), data=x).to_dense(), network
    )
    errors = [
        (Kronecker(network, x, forward=categorical(network), corrected=c).to_dense() - dense).norm()
        for c in (True, False)
    ]
    assert errors[0] < errors[1]


def test_the_trace_split_is_the_product_of_damped_factors(generator):
    network = deep_linear(generator)[0]
    x = torch.randn(9, 3, generator=generator, dtype=DOUBLE)
    K = Kronecker(network, x, forward=fixed_normal(network))
    damping = 0.3
    A, G = x.mT @ x / 9, torch.eye(4, dtype=DOUBLE)
    pi = (A.trace() / 3 / (G.trace() / 4)).sqrt()
    left = G + damping**0.5 / pi * torch.eye(4, dtype=DOUBLE)
    right = A + damping**0.5 * pi * torch.eye(3, dtype=DOUBLE)
    b = torch.randn(12, generator=generator, dtype=DOUBLE)
    expected = torch.linalg.solve(torch.kron(left, right), b)
    assert torch.allclose(K.solve(b, damping=damping, split=DampingSplit.TRACE), expected, **CLOSE)


def test_sampled_factors_tend_to_the_exact_ones(generator):
    network, x = make_network("mlp", generator)
    exact = Kronecker(network, x, forward=categorical(network)).to_dense()
    sampled = Kronecker(
        network, x, forward=categorical(network), samples=500, generator=generator
    )  # fmt: skip
    assert (sampled.to_dense() - exact).norm() < 0.1 * exact.norm()


def test_other_parameters_get_one_exact_dense_block(generator):
    with torch.random.fork_rng():
        network = deep_linear(generator)
    log_std = nn.Parameter(torch.zeros(2, dtype=DOUBLE))
    x = torch.randn(9, 3, generator=generator, dtype=DOUBLE)

    def policy(x):
        mean = network(x)
        return Independent(Normal(mean, log_std.exp().expand_as(mean)), 1)

    parameters = [log_std, *network.parameters()]
    K = Kronecker(network, x, forward=policy, parameters=parameters)
    fisher = Fisher(policy, parameters, data=x)
    v = torch.randn(K.shape[0], generator=generator, dtype=DOUBLE)
    assert torch.allclose((K @ v)[:2], 2 * v[:2], **CLOSE)  # 2/σ² · σ² for log σ
    assert torch.allclose(K @ v, _blocks(fisher.to_dense(), [2, 12, 8]) @ v, **CLOSE)


def _blocks(dense, sizes):
    return torch.block_diag(
        *[
            dense[sum(sizes[:i]) : sum(sizes[: i + 1]), sum(sizes[:i]) : sum(sizes[: i + 1])]
            for i in range(len(sizes))
        ]
    )


def test_as_preconditioner_it_saves_products(generator):
    network, _ = make_network("mlp", generator)
    x = torch.randn(300, 3, generator=generator, dtype=DOUBLE)
    x = x * torch.tensor([1.0, 30.0, 0.1], dtype=DOUBLE)
    damping = 1e-3
    fisher = Fisher(categorical(network), network.parameters(), data=x).damped(damping)
    K = Kronecker(network, x, forward=categorical(network))
    b = torch.randn(fisher.shape[0], generator=generator, dtype=DOUBLE)
    plain = cg(fisher, b, rtol=1e-6, max_iterations=1000)
    with_K = cg(fisher, b, rtol=1e-6, max_iterations=1000, preconditioner=kronecker(K, damping))
    assert with_K.iterations < plain.iterations


def test_leaves_no_trace(generator):
    with torch.random.fork_rng():
        network = nn.Sequential(
            nn.Linear(3, 4, dtype=DOUBLE), nn.BatchNorm1d(4, dtype=DOUBLE), nn.Dropout(0.5),
            nn.Linear(4, 3, dtype=DOUBLE),
        )  # fmt: skip
    x = torch.randn(9, 3, generator=generator, dtype=DOUBLE)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    Kronecker(network, x, forward=categorical(network))
    Kronecker(network, x, forward=categorical(network), samples=1, generator=generator)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert network.training
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda n, x: Kronecker(n, x, forward=categorical(n), samples=0), "at least 1"),
        (lambda n, x: Kronecker(n, x, forward=categorical(n), samples=2), "generator"),
        (lambda n, x: Kronecker(n, x, forward=lambda x: Categorical(logits=x), parameters=[
            torch.ones(3, dtype=torch.float64, requires_grad=True)]), "carries no graph"),
        (lambda n, x: Kronecker(n, x, forward=lambda x: Categorical(logits=n(x).unsqueeze(1))),
         "batch of one dimension"),
        (lambda n, x: Kronecker(n, x, forward=categorical(n)).solve(torch.ones(38).double(),
                                                                     damping=-1.0), "got -1.0"),
        (lambda n, x: Kronecker(n, x, forward=categorical(n)).solve(torch.ones(38).double()),
         "larger damping"),
        (lambda n, x: Kronecker(n, x, forward=categorical(n)).solve(torch.ones(7).double()),
         r"\(38,\)"),
        (lambda n, x: Kronecker(n, x, forward=categorical(n), corrected=True).solve(
            torch.ones(38).double(), damping=1.0, split=DampingSplit.TRACE), "only the EXACT"),
    ],
)  # fmt: skip
def test_errors_say_what_came_and_what_was_wanted(make, message, generator):
    network, x = make_network("mlp", generator)
    with pytest.raises(ValueError, match=message):
        make(network, x)


class Convolutional(nn.Module):
    """Pixels that do not merely average: where the two ways to form second moments part."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(1, 3, 2, dtype=DOUBLE)
        self.head = nn.Linear(27, 4, dtype=DOUBLE)

    def forward(self, x):
        return self.head(self.convolution(x).relu().flatten(1))


class Text(nn.Module):
    """Repeated words, and padding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3, padding_idx=0, dtype=DOUBLE)
        self.head = nn.Linear(12, 4, dtype=DOUBLE)

    def forward(self, words):
        return self.head(self.embedding(words).tanh().flatten(1))


@pytest.mark.parametrize("sharing", Sharing)
@pytest.mark.parametrize("kind", [Convolutional, Text])
def test_corrected_eigenvalues_are_second_moments_of_per_sample_gradients(kind, sharing, generator):
    """The diagonal of F in the eigenbasis: of its trace, and no matrix of that basis is nearer."""
    with torch.random.fork_rng():
        network = random_(kind(), generator)
    if kind is Text:
        x = torch.randint(0, 5, (7, 4), generator=generator)
        with torch.no_grad():
            network.embedding.weight[0] = 0
        owners = [network.embedding.weight]
    else:
        x = torch.rand(7, 1, 4, 4, generator=generator, dtype=DOUBLE)
        owners = [network.convolution.weight, network.convolution.bias]
    given = {"forward": categorical(network), "parameters": owners, "sharing": sharing}
    plain = Kronecker(network, x, **given)
    fisher = Fisher(categorical(network), owners, data=x).to_dense()
    corrected = Kronecker(network, x, corrected=True, **given).to_dense()
    torch.testing.assert_close(corrected.trace(), fisher.trace(), **CLOSE)
    ((_, (A, G)),) = plain.factors()
    U_A = torch.eye(len(A), dtype=DOUBLE) if A.ndim == 1 else torch.linalg.eigh(A)[1]
    basis = torch.kron(torch.linalg.eigh(G)[1].contiguous(), U_A.contiguous())
    # The vector holds a weight (d_out, d_in) and then the bias, an embedding (words, d_out).
    order = torch.arange(len(G) * len(A)).view(len(G), len(A))
    if kind is Text:
        order = order.mT.flatten()
    else:
        order = torch.cat([order[:, :-1].flatten(), order[:, -1]])
    basis = basis[order]
    best = basis @ (basis.mT @ fisher @ basis).diagonal().diag() @ basis.mT
    distance = (best - fisher).norm()
    assert (corrected - fisher).norm() <= distance * (1 + 1e-9)
    if len(G) * len(A) == len(torch.linalg.eigvalsh(fisher).unique()):  # the basis is the only one
        torch.testing.assert_close(corrected, best, rtol=1e-7, atol=1e-9)
    assert distance <= (plain.to_dense() - fisher).norm()


class KeyProjection(nn.Module):
    """Softmax ignores what all keys have in common: the gradient of their bias is rounding."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(4, 4) for _ in range(3))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        scores = self.query(x) @ self.key(x).mT / 2
        return self.head((scores.softmax(-1) @ self.value(x)).mean(1))


class BeforeNorm(nn.Module):
    """A BatchNorm takes off what a bias before it adds."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.norm(self.convolution(x)).tanh().mean((2, 3)))


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
@pytest.mark.parametrize("kind", [KeyProjection, BeforeNorm])
def test_layers_whose_bias_has_no_gradient_keep_their_factors(kind, dtype, generator):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = kind().to(dtype)
    shape = (9, 6, 4) if kind is KeyProjection else (9, 1, 8, 8)
    x = torch.randn(shape, generator=generator, dtype=dtype)
    K = Kronecker(network, x, forward=categorical(network))
    own = [owners for owners, factors in K.factors() if len(factors) == 2]
    layer = network.key if kind is KeyProjection else network.convolution
    assert any(owners[0] is layer.weight and owners[1] is layer.bias for owners in own)


def test_without_a_layer_of_its_own_all_is_one_dense_block(generator):
    """Biases alone, as BitFit trains: the exact matrix, as it would be beside other layers."""
    made = make_network("mlp", generator)
    network: Any = made[0]
    x = made[1]
    biases = [network.first.bias, network.second.bias]
    K = Kronecker(network, x, forward=categorical(network), parameters=biases)
    fisher = Fisher(categorical(network), biases, data=x).to_dense()
    torch.testing.assert_close(K.to_dense(), fisher, **CLOSE)
    b = torch.ones(len(fisher), dtype=DOUBLE)
    expected = torch.linalg.solve(fisher + 0.1 * torch.eye(len(fisher), dtype=DOUBLE), b)
    torch.testing.assert_close(K.solve(b, damping=0.1), expected)


@pytest.mark.parametrize("split", DampingSplit)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_one_sample_many_times_asks_for_damping_on_any_machine(split, dtype, generator):
    """A factor of rank one: what its factorisation leaves behind is the kernel's affair."""
    network, x = make_network("mlp", generator)
    network, x = network.to(dtype), x[:1].expand(7, -1).to(dtype)
    K = Kronecker(network, x, forward=categorical(network))
    b = torch.ones(K.shape[0], dtype=dtype)
    for damping in (1e-300, 1e-30, 1e-12):
        with contextlib.suppress(ValueError):  # "give a larger damping"
            assert bool(torch.isfinite(K.solve(b, damping=damping, split=split)).all())
    assert bool(torch.isfinite(K.solve(b, damping=1e-3, split=split)).all())


def test_a_factor_that_failed_is_never_handed_on_to_be_inverted(generator, monkeypatch):
    """On some processors MKL raises for it, on others it makes an infinity of it."""
    invert = torch.cholesky_inverse

    def strict(factor):
        if not bool((factor.diagonal() > 0).all() & torch.isfinite(factor).all()):
            raise torch.linalg.LinAlgError("the input matrix is singular")  # type: ignore[attr-defined]
        return invert(factor)

    monkeypatch.setattr(torch, "cholesky_inverse", strict)
    network, x = make_network("mlp", generator)
    K = Kronecker(network.float(), x[:1].expand(7, -1).float(), forward=categorical(network))
    with pytest.raises(ValueError, match="give a larger damping"):
        K.solve(torch.ones(K.shape[0]), damping=1e-300, split=DampingSplit.TRACE)
