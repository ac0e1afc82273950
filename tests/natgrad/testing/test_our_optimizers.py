"""Every optimizer of natgrad, and two of torch, beside the checks of the kit."""

import pytest
import torch

from bench.subjects import OPTIMIZERS
from natgrad.optim import TrustRegionNewton
from natgrad.testing.adapters import torch_optim
from natgrad.testing.cases.training import Training
from natgrad.testing.conformance import parametrize_with_checks
from natgrad.testing.subjects.optimizer import Optimizer

TORCH = [
    torch_optim.adapt("Adam", torch.optim.Adam),
    torch_optim.adapt("SGD", torch.optim.SGD),
]


@parametrize_with_checks([*OPTIMIZERS, *TORCH], "optimizer")
def test_what_an_optimizer_claims_holds(subject, check):
    check(subject, examples=1)


@pytest.mark.slow
@parametrize_with_checks([*OPTIMIZERS, *TORCH], "optimizer")
def test_what_an_optimizer_claims_holds_in_many_cases(subject, check):
    check(subject, seed=0)


def test_the_first_radius_does_not_turn_on_rounding():
    newton = Optimizer(
        "TrustRegionNewton", lambda model: TrustRegionNewton(model.parameters()), frozenset()
    )
    training = Training("convolution", "categorical", "closure", seed=63471)
    run, other = newton.begin(training), newton.begin(training)
    other.optimizer.param_groups[0]["params"].reverse()
    for theta, expected in zip(other.path(2), run.path(2), strict=True):
        torch.testing.assert_close(theta, expected, rtol=1e-6, atol=1e-9)
