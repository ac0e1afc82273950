"""No setting of an optimizer is taken that is not of its kind, and its error names it."""

import inspect
import math

import pytest
import torch
from torch import nn

from natgrad.curvature import Dense
from natgrad.optim import (
    KFAC,
    AdaptiveKFAC,
    HessianFree,
    LevenbergMarquardt,
    NaturalGradient,
    NonlinearCG,
    TrustRegionNewton,
)  # fmt: skip

OPTIMIZERS = [
    NaturalGradient, KFAC, AdaptiveKFAC, HessianFree, LevenbergMarquardt, NonlinearCG,
    TrustRegionNewton,
]  # fmt: skip
# Whole numbers and numbers; text, functions, models and switches are checked by other tests.
OTHERS = {"params", "likelihood", "curvature", "model", "loss", "solver", "search", "method",
          "preconditioner", "jacobian", "sharing"}  # fmt: skip
SETTINGS = [
    (optimizer, name)
    for optimizer in OPTIMIZERS
    for name, parameter in inspect.signature(optimizer).parameters.items()
    if name not in OTHERS and not isinstance(parameter.default, bool)
]


def made(optimizer, **settings):
    takes = inspect.signature(optimizer).parameters
    extra = {"likelihood": "categorical"} if "likelihood" in takes else {}
    with torch.random.fork_rng():
        model = nn.Linear(2, 3)
    return optimizer(model if "model" in takes else model.parameters(), **extra, **settings)


@pytest.mark.parametrize(("kind", "setting"), SETTINGS)
@pytest.mark.parametrize("value", ["0.1", math.nan, [1.0], torch.ones(2), -1, b"1", {}])
def test_a_setting_of_another_kind_is_refused_by_name(kind, setting, value):
    if setting in {"seed", "accept_ratio"} and isinstance(value, int):
        pytest.skip("which may be negative")
    with pytest.raises(ValueError, match=setting):
        made(kind, **{setting: value})


@pytest.mark.parametrize(("kind", "setting"), SETTINGS)
def test_its_own_default_is_taken(kind, setting):
    default = inspect.signature(kind).parameters[setting].default
    made(kind, **{setting: default})


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_setting_that_there_is_not_is_no_setting(kind):
    with pytest.raises(TypeError, match="learning_rate"):
        made(kind, learning_rate=0.1)


@pytest.mark.parametrize("kind", [NaturalGradient, HessianFree])
def test_an_operator_in_place_of_a_function_that_makes_one_is_named(kind):
    with pytest.raises(TypeError, match=r"curvature=lambda: Dense\(\.\.\.\)"):
        kind([torch.ones(2, requires_grad=True)], curvature=Dense(torch.eye(2)))


@pytest.mark.parametrize("kind", [NaturalGradient, KFAC, AdaptiveKFAC, HessianFree])
def test_a_model_that_is_none_is_named(kind):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got 'net'"):
        kind([torch.ones(2, requires_grad=True)], model="net")
