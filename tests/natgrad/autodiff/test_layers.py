"""Layer-wise forms (Gram, Kronecker) on models whose hooks do not tell the whole truth.

Each case once gave a wrong matrix in silence: what a forward hook sees of a layer is not all that a
model may do with its weight.
"""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, Normal
from torch.nn import functional as F
from torch.nn.utils import prune

from natgrad.curvature import DampingSplit, Fisher, Gram, Kronecker, Sharing
from natgrad.testing.networks import categorical, make_network

DOUBLE = torch.float64
CLOSE: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-10}


class InPlace(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(3, 5), nn.ReLU(inplace=True), nn.Linear(5, 2))


class TiedByHand(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(3, 4)

    def forward(self, x):
        return F.linear(self.encoder(x).tanh(), self.encoder.weight.t())[:, :2]


class Hooked(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(3, 4), nn.Linear(4, 2))
        self[0].register_forward_hook(lambda module, inputs, output: output * 2)


class WeightNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
        self.second = nn.Linear(4, 2)

    def forward(self, x):
        return self.second(self.first(x).tanh())


class Pruned(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        prune.l1_unstructured(self.first, "weight", 0.5)
        self.second = nn.Linear(4, 2)

    def forward(self, x):
        return self.second(self.first(x).tanh())


class TimeFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(1, 4), nn.Linear(4, 2)

    def forward(self, x):  # (N, 3) as three steps, time before the batch
        return self.second(self.first(x.t().unsqueeze(2)).tanh().mean(0))


class Broadcast(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.shared(torch.ones(1, 3, dtype=DOUBLE)) + x)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.layer(input=self.layer(x).tanh()).tanh())


class Partial(nn.Module):
    """A frozen bias, a layer under no_grad, and one that is not used."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.unused = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(40, 50)
        self.constant = nn.Linear(3, 4)
        self.first.bias.requires_grad_(False)

    def forward(self, x):
        with torch.no_grad():
            constant = self.constant(x)
        return self.second((self.first(x) + constant).tanh())


class Padded(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Unflatten(1, (1, 3)),
            nn.Conv1d(1, 2, 2, padding="same", padding_mode="circular"),
            nn.Tanh(), nn.Flatten(), nn.Linear(6, 2),
        )  # fmt: skip


MODELS = [
    InPlace, TiedByHand, Hooked, WeightNorm, Pruned, TimeFirst, Broadcast, Twice, Partial, Padded,
]  # fmt: skip


@pytest.fixture(params=MODELS, ids=lambda model: model.__name__)
def model(request, generator):
    with torch.random.fork_rng():
        model = request.param().to(DOUBLE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=DOUBLE))
    return model


@pytest.fixture
def x(generator):
    return torch.randn(5, 3, generator=generator, dtype=DOUBLE)


def jacobian(model, x):
    rows = [
        torch.autograd.grad(y, [p for p in model.parameters() if p.requires_grad],
                            retain_graph=True, materialize_grads=True)
        for y in model(x).reshape(-1)
    ]  # fmt: skip
    return torch.stack([torch.cat([piece.reshape(-1) for piece in row]) for row in rows])


def test_gram_by_layers_is_the_gram_matrix(model, x):
    J = jacobian(model, x)
    K = Gram(model, list(model.parameters()), data=x, model=model)
    assert torch.allclose(K.to_dense(), J @ J.mT, **CLOSE)


def test_kronecker_is_exact_for_one_sample_whatever_the_model_does(model, x):
    """Where a factor does not describe a parameter, its exact dense block does."""
    fisher = Fisher(categorical(model), model.parameters(), data=x[:1]).to_dense()
    K = Kronecker(model, x[:1], forward=categorical(model)).to_dense()
    if isinstance(model, (Twice, TimeFirst, Padded)):  # weights shared: K-FAC is an approximation
        assert torch.allclose(K, K.mT, **CLOSE)
        return
    if isinstance(model, TiedByHand):  # no layer has a weight of its own: one dense block
        assert torch.allclose(K, fisher, **CLOSE)
    blocks = K != 0
    assert torch.allclose(K[blocks], fisher[blocks], **CLOSE)
    assert torch.allclose(K.diagonal(), fisher.diagonal(), **CLOSE)


def test_repeated_words_are_summed_by_sample(generator):
    network, words = make_network("embedding", generator)
    words[:, 1] = words[:, 0]  # every sample has a word twice
    fisher = Fisher(categorical(network), network.parameters(), data=words)
    corrected = Kronecker(network, words, forward=categorical(network), corrected=True)
    # E-KFAC's values are vᵀF v along its own basis; the embedding's is that of G and of the words.
    block: Any = corrected._blocks[0]
    basis = torch.zeros(fisher.shape[0], 4, dtype=DOUBLE)
    for word in range(5):
        basis[:] = 0
        basis[word * 4 : word * 4 + 4] = block._eigen.U_G
        quadratic = (basis * (fisher @ basis)).sum(0)
        assert torch.allclose(block._eigen.values[:, word], quadratic, **CLOSE)


@pytest.mark.parametrize("corrected", [False, True])
def test_reduce_of_an_embedding_is_exact_where_words_are_averaged(corrected, generator):
    embedding = nn.Embedding(4, 3, padding_idx=0, dtype=DOUBLE, _weight=torch.zeros(4, 3).double())
    with torch.no_grad():
        embedding.weight.copy_(torch.randn(4, 3, generator=generator, dtype=DOUBLE))
    words = torch.randint(0, 4, (6, 3), generator=generator)

    def forward(words):
        return Independent(Normal(embedding(words).mean(1), torch.ones((), dtype=DOUBLE)), 1)

    K = Kronecker(embedding, words, forward=forward, sharing=Sharing.REDUCE, corrected=corrected)
    expected = Fisher(forward, embedding.parameters(), data=words).to_dense()
    assert torch.allclose(K.to_dense(), expected, **CLOSE)
    assert not K.to_dense()[:3].any()  # the padding's row


def test_samples_must_be_told_apart_where_that_matters(x):
    layer = nn.utils.skip_init(nn.Linear, 3, 2, dtype=DOUBLE, bias=False)
    nn.init.constant_(layer.weight, 0.5)
    sequences = torch.stack([x, -x], dim=1)

    def flattened(x):
        return Categorical(logits=layer(x.flatten(0, 1)).view(5, 2, 2).mean(1))

    Kronecker(layer, sequences, forward=flattened)
    for settings in ({"corrected": True}, {"sharing": Sharing.REDUCE}):
        with pytest.raises(ValueError, match="10 rows for 5 samples"):
            Kronecker(layer, sequences, forward=flattened, **settings)


def test_small_dampings_are_exact_in_float32(generator):
    layer = nn.utils.skip_init(nn.Linear, 3, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(3, 3, generator=generator))
    x = 100 * torch.randn(1, 3, generator=generator)
    K = Kronecker(layer, x, forward=categorical(layer))
    b = torch.randn(9, generator=generator)
    wide = torch.linalg.solve(K.to_dense().double() + 1e-3 * torch.eye(9), b.double())
    assert torch.allclose(K.solve(b, damping=1e-3).double(), wide, rtol=1e-3, atol=1)
    assert torch.isfinite(K.solve(b, damping=1e-3, split=DampingSplit.TRACE)).all()


def test_saturated_tanh_policies_have_finite_sampled_factors(generator):
    layer = nn.utils.skip_init(nn.Linear, 3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.ones(2, 3))
        layer.bias.fill_(9.0)

    def policy(x):
        base = Independent(Normal(layer(x), 1.0), 1)
        return torch.distributions.TransformedDistribution(
            base, [torch.distributions.TanhTransform()]
        )

    x = torch.rand(50, 3, generator=generator)
    K = Kronecker(layer, x, forward=policy, samples=2, generator=generator)
    assert torch.isfinite(K.to_dense()).all()


def test_factors_keep_no_graph_alive(x, generator):
    layer = nn.utils.skip_init(nn.Linear, 3, 2, dtype=DOUBLE)
    nn.init.constant_(layer.weight, 0.5)
    nn.init.zeros_(layer.bias)
    seen = []
    layer.register_forward_hook(lambda module, inputs, output: seen.append(weakref.ref(output)))
    K = Kronecker(layer, x, forward=categorical(layer))
    gc.collect()
    assert all(reference() is None for reference in seen)
    assert K.shape == (8, 8)


def test_weights_that_are_not_finite_are_told():
    layer = nn.utils.skip_init(nn.Linear, 3, 2, dtype=DOUBLE)
    nn.init.constant_(layer.weight, torch.nan)
    nn.init.zeros_(layer.bias)
    with pytest.raises(ValueError, match="outputs hold NaN"):
        Kronecker(
            layer,
            torch.ones(4, 3, dtype=DOUBLE),
            forward=lambda x: Categorical(logits=layer(x), validate_args=False),
        )
