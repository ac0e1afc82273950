"""K-FAC's step by hand, its factors over time, and the blocks that they are kept in."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, Normal
from torch.nn import functional as F

from natgrad import Fisher, Kronecker
from natgrad.curvature import DampingSplit
from natgrad.flat import flatten
from natgrad.optim import KFAC
from natgrad.testing.networks import NETWORKS, categorical, make_network

DOUBLE = torch.float64
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}


def randn(*shape, generator):
    return torch.randn(*shape, generator=generator, dtype=DOUBLE)


@pytest.fixture
def linear(built):
    """Two inputs and a bias, three classes."""
    return built(lambda: nn.Linear(2, 3))


def labels(x, generator):
    return torch.randint(0, 3, (len(x),), generator=generator)


def backward(model, x, y):
    """The gradient (n,) of the mean loss, left in ``.grad`` as well."""
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    return flatten(parameter.grad for parameter in model.parameters())


def factors_by_hand(linear, x):
    """A and G of a linear layer under softmax."""
    a = torch.cat([x, torch.ones(len(x), 1, dtype=DOUBLE)], dim=1)
    p = linear(x).softmax(dim=1).detach()
    return a.mT @ a / len(x), torch.diag(p.mean(0)) - p.mT @ p / len(p)


def kept_factors(optimizer, layer):
    state = optimizer.state[layer.weight]
    return state["input_factor"], state["output_factor"]


@pytest.mark.parametrize("max_kl", [None, 1e-2, 1e-4])
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("refresh_every", [1, 3])
def test_steps_are_momentum_bound_and_weight_decay_by_hand(
    corrected, refresh_every, max_kl, generator
):
    model, x = make_network("mlp", generator)
    lr, damping, momentum, weight_decay, decay = 0.3, 0.05, 0.9, 0.1, 0.6
    optimizer = KFAC(
        model, likelihood="categorical", lr=lr, damping=damping, max_kl=max_kl, decay=decay,
        momentum=momentum, weight_decay=weight_decay, refresh_every=refresh_every, samples=None,
        corrected=corrected, measure_kl=False,
    )  # fmt: skip
    split = DampingSplit.EXACT if corrected else DampingSplit.TRACE
    unwatched = copy.deepcopy(model)  # or the passes of our own curvature would count as batches
    m: Any = 0.0
    K, refreshes, bounded = None, 0, 0
    for step in range(7):
        x = x + randn(*x.shape, generator=generator)
        theta = flatten(model.parameters())
        g = backward(model, x, labels(x, generator))
        if step % refresh_every == 0:
            refreshes += 1
            unwatched.load_state_dict(model.state_dict())
            K = Kronecker(
                unwatched, x, forward=categorical(unwatched), corrected=corrected, previous=K,
                decay=min(decay, 1 - 1 / refreshes),
            )  # fmt: skip
        assert K is not None
        m = momentum * m + K.solve(g, damping=damping, split=split)
        kl = lr**2 * float(m @ K.to_dense() @ m) / 2
        nu = 1.0 if max_kl is None else min(1.0, math.sqrt(max_kl / kl))
        m, bounded = nu * m, bounded + (nu < 1)
        optimizer.step()
        expected = (1 - lr * weight_decay) * theta - lr * m
        assert torch.allclose(flatten(model.parameters()), expected, **CLOSE)
        assert optimizer.last_step is not None
        assert optimizer.last_step.step_scale == pytest.approx(nu)
        assert optimizer.last_step.predicted_kl == pytest.approx(nu**2 * kl)
        assert max_kl is None or optimizer.last_step.predicted_kl <= max_kl * (1 + 1e-12)
    assert max_kl != 1e-4 or bounded


def one_step(model, x, y, loss, **settings):
    """(g, θ − θ_new) of a plain step of length one."""
    optimizer = KFAC(model, lr=1.0, max_kl=None, momentum=0.0, samples=None, **settings)
    before = flatten(model.parameters())
    optimizer.zero_grad()
    loss(model(x), y).backward()
    g = flatten(parameter.grad for parameter in model.parameters())
    optimizer.step()
    return g, before - flatten(model.parameters())


@pytest.mark.parametrize("damping", [1e-3, 0.3])
@pytest.mark.parametrize("case", ["one sample", "normal"])
def test_for_one_layer_a_corrected_step_is_the_damped_natural_gradient(
    case, damping, linear, generator
):
    """Where G ⊗ A is the Fisher matrix: for one sample, and for a constant metric."""
    if case == "normal":
        x, y = randn(9, 2, generator=generator), randn(9, 3, generator=generator)
        likelihood, loss = "normal", lambda out, y: (out - y).square().sum(1).mean() / 2

        def forward(x):
            return Independent(Normal(linear(x), 1.0), 1)
    else:
        x = randn(1, 2, generator=generator)
        y, likelihood, loss = labels(x, generator), "categorical", F.cross_entropy
        forward = categorical(linear)
    fisher = Fisher(forward, linear.parameters(), data=x).to_dense()
    g, d = one_step(linear, x, y, loss, likelihood=likelihood, damping=damping, corrected=True)
    damped = fisher + damping * torch.eye(len(g), dtype=DOUBLE)
    assert torch.allclose(d, torch.linalg.solve(damped, g), **CLOSE)


def test_an_uncorrected_step_damps_each_factor(linear, generator):
    x = randn(9, 2, generator=generator)
    damping = 0.2
    A, G = factors_by_hand(linear, x)
    y = labels(x, generator)
    g, d = one_step(linear, x, y, F.cross_entropy, likelihood="categorical", damping=damping)
    V = torch.cat([g[:6].view(3, 2), g[6:].view(3, 1)], dim=1)
    pi = (A.trace() / 3 / (G.trace() / 3)).sqrt()
    left = G + damping**0.5 / pi * torch.eye(3, dtype=DOUBLE)
    right = A + damping**0.5 * pi * torch.eye(3, dtype=DOUBLE)
    S = torch.linalg.inv(left) @ V @ torch.linalg.inv(right)
    assert torch.allclose(d, torch.cat([S[:, :2].flatten(), S[:, 2]]), **CLOSE)


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("samples", [None, 1, 3])
@pytest.mark.parametrize("refresh_every", [1, 3, 4])
def test_a_further_forward_pass_is_made_at_refreshes_and_for_the_kl(
    refresh_every, samples, measured, generator
):
    model, x = make_network("mlp", generator)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    optimizer = KFAC(
        model, likelihood="categorical", refresh_every=refresh_every, samples=samples,
        measure_kl=measured, max_kl=1e3,
    )  # fmt: skip
    y = labels(x, generator)
    extra = []
    for _ in range(9):
        backward(model, x, y)
        calls.clear()
        optimizer.step()
        extra.append(len(calls))
    # The outputs before the step are those that the gradient was made of.
    assert extra == [int(step % refresh_every == 0) + measured for step in range(9)]


def test_first_refreshes_have_equal_shares_and_later_ones_what_decay_leaves(linear, generator):
    decay = 0.7
    optimizer = KFAC(
        linear, likelihood="categorical", lr=0.0, refresh_every=1, decay=decay, samples=None
    )  # fmt: skip
    seen = []
    for count in range(1, 8):
        x = randn(9, 2, generator=generator)
        backward(linear, x, labels(x, generator))
        optimizer.step()
        seen.append(factors_by_hand(linear, x))
        if count <= 3:  # 1 − 1/3 < 0.7 < 1 − 1/4
            expected = [sum(pair) / count for pair in zip(*seen, strict=True)]
        else:
            new = seen[-1]
            expected = [decay * e + (1 - decay) * n for e, n in zip(expected, new, strict=True)]
        for kept, wanted in zip(kept_factors(optimizer, linear), expected, strict=True):
            assert torch.allclose(kept, wanted, **CLOSE)


@pytest.mark.parametrize("refreshes", [1, 4])
def test_batches_of_one_step_have_the_average_of_their_factors(refreshes, linear, generator):
    """In every refresh: the mean over equal batches is one new value of the moving average."""
    decay = 0.5
    optimizer = KFAC(
        linear, likelihood="categorical", lr=0.0, refresh_every=1, decay=decay, samples=None
    )  # fmt: skip
    expected = None
    for count in range(1, refreshes + 1):
        batches = [randn(6, 2, generator=generator) for _ in range(2)]
        linear.zero_grad()
        for x in batches:
            F.cross_entropy(linear(x), labels(x, generator)).backward()
        optimizer.step()
        pairs = zip(*(factors_by_hand(linear, x) for x in batches), strict=True)
        new = [(one + other) / 2 for one, other in pairs]
        old = min(decay, 1 - 1 / count)
        last = new if expected is None else expected
        expected = [old * e + (1 - old) * n for e, n in zip(last, new, strict=True)]
    assert expected is not None
    for kept, wanted in zip(kept_factors(optimizer, linear), expected, strict=True):
        assert torch.allclose(kept, wanted, **CLOSE)


def diagonal_in(U, matrix):
    return U @ torch.diag((U.mT @ matrix @ U).diagonal()) @ U.mT


def spans(parameters):
    ends = torch.tensor([p.numel() for p in parameters]).cumsum(0).tolist()
    return [slice(end - p.numel(), end) for end, p in zip(ends, parameters, strict=True)]


@pytest.mark.parametrize("decay", [0.3, 0.95])
def test_corrected_eigenvalues_are_turned_into_the_new_basis(decay, built, generator):
    """There they are the diagonals of the old operator and of this batch's Fisher block, mixed."""
    network = built(
        lambda: nn.Sequential(
            nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 3, bias=False)
        )
    )  # fmt: skip
    K = None
    for _ in range(3):
        x = randn(9, 3, generator=generator)
        fisher = Fisher(categorical(network), network.parameters(), data=x).to_dense()
        old = None if K is None else K.to_dense()
        K = Kronecker(
            network, x, forward=categorical(network), corrected=True, previous=K, decay=decay
        )  # fmt: skip
        mixed = fisher if old is None else decay * old + (1 - decay) * fisher
        dense, parameters = K.to_dense(), list(network.parameters())
        for span, (_, (A, G, _)) in zip(spans(parameters), K.factors(), strict=True):
            U = torch.kron(torch.linalg.eigh(G)[1], torch.linalg.eigh(A)[1])
            assert torch.allclose(dense[span, span], diagonal_in(U, mixed[span, span]), **CLOSE)


def test_corrected_eigenvalues_of_words_are_turned_on_the_output_side(built, generator):
    network = built(lambda: nn.Embedding(5, 3))
    K = None
    for _ in range(3):
        words = torch.randint(0, 5, (12,), generator=generator)
        fisher = Fisher(categorical(network), network.parameters(), data=words).to_dense()
        old = None if K is None else K.to_dense()
        K = Kronecker(
            network, words, forward=categorical(network), corrected=True, previous=K, decay=0.6
        )  # fmt: skip
        mixed = fisher if old is None else 0.6 * old + 0.4 * fisher
        _, (A, G, _) = K.factors()[0]
        assert A.ndim == 1
        U = torch.kron(torch.eye(5, dtype=DOUBLE), torch.linalg.eigh(G)[1].contiguous())
        assert torch.allclose(K.to_dense(), diagonal_in(U, mixed), **CLOSE)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("corrected", [False, True])
def test_factors_are_all_that_an_operator_is_made_of(corrected, dtype, kind, generator):
    network, x = make_network(kind, generator)
    network.to(dtype)
    x = x.to(dtype) if x.is_floating_point() else x
    K = None
    for _ in range(2):
        K = Kronecker(
            network, x, forward=categorical(network), corrected=corrected, previous=K, samples=2,
            generator=generator,
        )  # fmt: skip
    parameters = list(network.parameters())
    assert K is not None
    again = Kronecker.restored(network, parameters, K.factors(), corrected=corrected)
    V = randn(K.shape[0], 2, generator=generator).to(dtype)
    assert torch.equal(again @ V, K @ V)
    for split in DampingSplit:
        if not (corrected and split is DampingSplit.TRACE):
            solutions = [operator.solve(V, damping=0.01, split=split) for operator in (K, again)]
            assert torch.equal(*solutions)


def test_drawn_labels_are_those_of_the_seed(generator):
    model, x = make_network("mlp", generator)
    y = labels(x, generator)

    def end(seed):
        trained = copy.deepcopy(model)
        optimizer = KFAC(trained, likelihood="categorical", seed=seed, refresh_every=1)
        for _ in range(3):
            backward(trained, x, y)
            optimizer.step()
        return flatten(trained.parameters())

    assert torch.equal(end(0), end(0))
    ends = [end(seed) for seed in (0, 1, 2, 2**32, -1)]
    assert all(not torch.equal(ends[i], ends[j]) for i in range(5) for j in range(i))


class Scaled(nn.Module):
    """A linear layer between parameters of no layer."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor([0.3, -0.2, 0.5, 0.1], dtype=DOUBLE))
        self.linear = nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.tensor([1.0, -2.0, 0.7], dtype=DOUBLE))

    def forward(self, x):
        return self.scale * self.linear((x + self.shift).tanh())


@pytest.mark.parametrize("samples", [1, 5])
def test_the_diagonal_of_many_other_parameters_is_unbiased(samples, built, generator, monkeypatch):
    monkeypatch.setattr("natgrad.curvature.kronecker.operator.MAX_DENSE", 6)
    network = built(Scaled)
    x = randn(5, 4, generator=generator)
    rest = [network.shift, network.scale]
    exact = Fisher(categorical(network), rest, data=x).to_dense().diagonal()
    repetitions = 120 // samples + 30
    found = []
    for seed in range(repetitions):
        K = Kronecker(
            network, x, forward=categorical(network), samples=samples,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        owners, (diagonal,) = K.factors()[-1]
        assert {id(owner) for owner in owners} == {id(parameter) for parameter in rest}
        found.append(diagonal)
    together = torch.stack(found)
    error = together.std(dim=0) / repetitions**0.5
    assert bool(((together.mean(dim=0) - exact).abs() <= 4.5 * error).all())
    assert bool((error < 0.3 * exact).all())


def test_a_diagonal_block_multiplies_solves_and_comes_back(built, generator, monkeypatch):
    monkeypatch.setattr("natgrad.curvature.kronecker.operator.MAX_DENSE", 6)
    network = built(Scaled)
    x = randn(5, 4, generator=generator)
    K = Kronecker(network, x, forward=categorical(network), samples=2, generator=generator)
    parameters = list(network.parameters())
    where = dict(zip(map(id, parameters), spans(parameters), strict=True))
    owners, (diagonal,) = K.factors()[-1]
    rows = torch.cat([torch.arange(K.shape[0])[where[id(owner)]]
                      for owner in owners])  # fmt: skip
    v = randn(K.shape[0], generator=generator)
    assert torch.allclose((K @ v)[rows], diagonal * v[rows], **CLOSE)
    assert torch.allclose(K.solve(v, damping=0.1)[rows], v[rows] / (diagonal + 0.1), **CLOSE)
    again = Kronecker.restored(network, parameters, K.factors())
    assert torch.equal(again @ v, K @ v)
    assert torch.equal(again.solve(v, damping=0.1), K.solve(v, damping=0.1))


def test_exact_factors_of_many_other_parameters_are_refused(built, generator, monkeypatch):
    monkeypatch.setattr("natgrad.curvature.kronecker.operator.MAX_DENSE", 6)
    network = built(Scaled)
    with pytest.raises(ValueError, match="7 parameters are outside"):
        Kronecker(network, randn(5, 4, generator=generator), forward=categorical(network))


def test_training_goes_on_with_a_diagonal_block(built, generator, monkeypatch):
    """Through the optimizer's state: a checkpoint between refreshes holds the diagonal too."""
    monkeypatch.setattr("natgrad.curvature.kronecker.operator.MAX_DENSE", 6)
    x = randn(12, 4, generator=generator)
    y = labels(x, generator)
    network, other = built(Scaled), built(Scaled)
    settings: dict[str, Any] = {
        "lr": 0.1,
        "refresh_every": 3,
        "likelihood": lambda out: Categorical(logits=out),
    }
    optimizer, resumed = KFAC(network, **settings), KFAC(other, **settings)
    losses = []
    for step in range(8):
        if step == 4:
            other.load_state_dict(network.state_dict())
            resumed.load_state_dict(optimizer.state_dict())
        losses.append(float(F.cross_entropy(network(x), y).detach()))
        backward(network, x, y)
        optimizer.step()
        if step >= 4:
            backward(other, x, y)
            resumed.step()
            assert torch.equal(flatten(other.parameters()), flatten(network.parameters()))
    assert losses[-1] < losses[0]
