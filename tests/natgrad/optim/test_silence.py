"""Mistakes in the loop around an optimizer are told once, in the user's line; right loops are not
disturbed."""

import copy
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from natgrad.optim import (
    KFAC,
    AdaptiveKFAC,
    HessianFree,
    LevenbergMarquardt,
    NaturalGradient,
    NonlinearCG,
    OptimizerStatus,
    TrustRegionNewton,
)  # fmt: skip
from natgrad.optim.contradictions import contradictions
from natgrad.optim.loop_warnings import GradientMarks

LOSS = {
    "categorical": "cross_entropy",
    "bernoulli": "binary_cross_entropy",
    "normal": "squared_error",
}
MODELS: dict[str, Any] = {
    "NaturalGradient": lambda m, name="categorical": NaturalGradient(m, likelihood=name),
    "KFAC": lambda m, name="categorical": KFAC(m, likelihood=name),
    "AdaptiveKFAC": lambda m, name="categorical": AdaptiveKFAC(m, likelihood=name),
    "HessianFree": lambda m, name="categorical": HessianFree(m, loss=LOSS[name]),
}
OTHERS: dict[str, Any] = {
    "LevenbergMarquardt": LevenbergMarquardt,
    "TrustRegionNewton": lambda m: TrustRegionNewton(m.parameters()),
    "NonlinearCG": lambda m: NonlinearCG(m.parameters()),
}


def network(seed=0, outputs=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs))


def told(act):
    """The texts of the warnings, each of which points at this file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act()
    assert {warning.filename for warning in caught} <= {__file__}
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("name", [*MODELS, *OTHERS])
def test_a_forgotten_backward_is_told_once(name):
    model = network()
    optimizer = {**MODELS, **OTHERS}[name](model)

    def loop():
        for _ in range(10):
            model(torch.ones(2, 4)).sum()
            optimizer.step()
            assert optimizer.last_step.status is OptimizerStatus.NO_GRADIENT

    (text,) = told(loop)
    assert text.startswith("step() found no gradient, every .grad is None")
    assert "loss.backward()" in text


@pytest.mark.parametrize("name", [*MODELS, *OTHERS])
def test_frozen_parameters_are_told_once(name):
    model = network().requires_grad_(False)
    optimizer = {**MODELS, **OTHERS}[name](model)
    texts = told(lambda: [optimizer.step() for _ in range(3)])
    assert texts == [
        "all 4 parameters are frozen, and step() changes none of them: set requires_grad=True for "
        "those to train"
    ]


@pytest.mark.parametrize("name", ["NaturalGradient", "HessianFree", "AdaptiveKFAC"])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_closure_that_keeps_its_loss_to_itself_is_told_once(name, set_to_none, generator):
    model, x = network(), torch.randn(8, 4, generator=generator)
    optimizer = MODELS[name](model)

    def closure():
        optimizer.zero_grad(set_to_none)
        F.cross_entropy(model(x), torch.arange(8) % 3).backward()

    texts = told(lambda: [optimizer.step(closure) for _ in range(3)])
    assert len(texts) == 1
    assert texts[0].startswith("the closure computed gradients but returned None")


def test_a_gradient_in_the_memory_of_the_one_before_is_a_new_one():
    """The next tensor mostly has the id, and the version, of the one that zero_grad() freed."""
    p = nn.Parameter(torch.ones(3))
    for _ in range(100):
        p.square().sum().backward()
        marks = GradientMarks([p])
        p.grad = None
        assert not marks.written()
        p.square().sum().backward()
        assert marks.written()
    marks = GradientMarks([p])
    assert not marks.written()
    p.square().sum().backward()  # accumulates in place
    assert marks.written()


@pytest.mark.parametrize("name", MODELS)
def test_a_closure_that_does_nothing_after_backward_is_a_plain_step(name, generator):
    """Lightning's manual optimisation: optimizer.step() passes one that returns None."""
    model, x = network(), torch.randn(8, 4, generator=generator)
    twin = copy.deepcopy(model)
    for m, closure in ((model, lambda: None), (twin, None)):
        optimizer = MODELS[name](m)
        F.cross_entropy(m(x), torch.arange(8) % 3).backward()
        assert told(lambda o=optimizer, c=closure: o.step(c)) == []
        assert optimizer.last_step.status is OptimizerStatus.ACCEPTED
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def focal(y, t):
    losses = F.cross_entropy(y, t, reduction="none")
    return ((1 - torch.exp(-losses)) ** 2 * losses).mean()


def one_hot(y, t):
    return F.one_hot(t, y.shape[1]).to(y)


WEIGHTS = torch.tensor([0.5, 2.0, 3.0])
OF_CLASSES = {
    "cross entropy": F.cross_entropy,
    "weighted": lambda y, t: F.cross_entropy(y, t, weight=WEIGHTS),
    "smoothed": lambda y, t: F.cross_entropy(y, t, label_smoothing=0.1),
    "focal": focal,
    "nll of log-softmax": lambda y, t: F.nll_loss(F.log_softmax(y, dim=1), t),
    "half, accumulated": lambda y, t: F.cross_entropy(y, t) / 2,
    "scaled": lambda y, t: 65536.0 * F.cross_entropy(y, t),
}
OF_BITS = {
    "bce": lambda y, t: F.binary_cross_entropy_with_logits(y, one_hot(y, t)),
    "pos_weight": lambda y, t: F.binary_cross_entropy_with_logits(
        y, one_hot(y, t), pos_weight=WEIGHTS
    ),
}
OF_SQUARES = {
    "mse": lambda y, t: F.mse_loss(y, one_hot(y, t)),
    "half squares": lambda y, t: (y - one_hot(y, t)).square().sum(1).mean() / 2,
    "sum of squares": lambda y, t: F.mse_loss(y, one_hot(y, t), reduction="sum"),
    "huber": lambda y, t: F.huber_loss(y, one_hot(y, t)),
}
FAMILIES = {"categorical": OF_CLASSES, "bernoulli": OF_BITS, "normal": OF_SQUARES}
# Squares and bits of one output look alike: their gradients do not show the labels.
SEEN = [
    (likelihood, family, loss)
    for likelihood in FAMILIES
    for family, losses in FAMILIES.items()
    for loss in losses
    if "categorical" in (likelihood, family)
]


def texts_for(argument, name, loss, y, t):
    y = y.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(y, t), y)
    return contradictions(argument, name, y, gradient)


def outputs(seed, samples=12):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn(samples, 3, generator=generator)
    return y, torch.randint(3, (samples,), generator=generator)


@pytest.mark.parametrize(("likelihood", "family", "loss"), SEEN)
@pytest.mark.parametrize("argument", ["likelihood", "loss"])
@given(st.integers(0, 2**20))
def test_a_meaning_that_contradicts_the_loss_is_told(argument, likelihood, family, loss, seed):
    said, right = (LOSS[name] if argument == "loss" else name for name in (likelihood, family))
    texts = texts_for(argument, said, FAMILIES[family][loss], *outputs(seed))
    if likelihood == family:
        assert texts == []
        return
    (text,) = texts
    assert text.startswith(f"{argument}={said!r}")
    assert f"{argument}={right!r}" in text


@given(st.integers(0, 2**20))
def test_what_only_looks_like_a_contradiction_is_none(seed):
    y, t = outputs(seed)
    # Brier's score of a softmax: the outputs sum to 1 as the labels do, and the gradient to 0.
    assert texts_for("likelihood", "normal", OF_SQUARES["mse"], y.softmax(1), t) == []
    # log-probabilities as outputs: the null vector is taken away before the parameters.
    assert texts_for("likelihood", "categorical", F.nll_loss, y.log_softmax(1), t) == []
    penalised = lambda y, t: F.cross_entropy(y, t) + 1e-4 * y.logsumexp(1).square().sum()  # noqa: E731
    assert texts_for("likelihood", "categorical", penalised, y, t) == []


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli"])
@given(st.integers(0, 2**20))
def test_a_sum_where_the_curvature_is_of_a_mean_is_told(likelihood, seed):
    mean = {"categorical": OF_CLASSES["cross entropy"], "bernoulli": OF_BITS["bce"]}[likelihood]
    elements = {"categorical": 32, "bernoulli": 96}[likelihood]  # what torch's mean divides by
    y, t = outputs(seed, samples=32)
    assert texts_for("likelihood", likelihood, mean, y, t) == []
    (text,) = texts_for("likelihood", likelihood, lambda y, t: elements * mean(y, t), y, t)
    assert "the loss is a sum" in text
    assert 'reduction="mean"' in text


@pytest.mark.parametrize("name", MODELS)
def test_an_optimizer_tells_of_a_contradiction_at_its_first_step_alone(name, generator):
    x, t = torch.randn(12, 4, generator=generator), torch.arange(12) % 3
    for loss, count in ((F.cross_entropy, 0), (OF_SQUARES["mse"], 1)):
        model = network()
        optimizer = MODELS[name](model)

        def steps(model=model, optimizer=optimizer, loss=loss):
            for _ in range(3):
                optimizer.zero_grad()
                loss(model(x), t).backward()
                optimizer.step()

        assert len(told(steps)) == count


def test_the_names_that_other_libraries_use_are_translated():
    with pytest.raises(ValueError, match="got 'mse', which is 'normal' here"):
        NaturalGradient(network(), likelihood="mse")
    with pytest.raises(ValueError, match="got 'bce', which is 'binary_cross_entropy' here"):
        HessianFree(network(), loss="bce")
