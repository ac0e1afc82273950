"""Every optimizer of natgrad, and two of torch, beside the checks of the kit."""

from functools import partial

import pytest
import torch
from torch import nn

from natgrad.curvature import LinearOperator
from natgrad.optim import (
    KFAC,
    AdaptiveKFAC,
    HessianFree,
    LevenbergMarquardt,
    NaturalGradient,
    NonlinearCG,
    TrustRegionNewton,
)
from natgrad.solvers import cholesky
from natgrad.testing.adapters import torch_optim
from natgrad.testing.cases.training import Training
from natgrad.testing.conformance import parametrize_with_checks
from natgrad.testing.subjects.optimizer import PLAIN, Optimizer


def exactly(A, b):
    return cholesky(A.to_dense(), b, rtol=1e-12)


def gauss_newton(model: nn.Module):
    """The curvature of an objective that is ½‖r‖²; the identity of one that is not."""

    def operator() -> LinearOperator:
        if model.objective.kind == "logarithm":
            return LinearOperator.from_dense(torch.eye(1, dtype=torch.float64))
        J = torch.autograd.functional.jacobian(model.objective.residual_vector, model.x.detach())
        return LinearOperator.from_dense(J.mT @ J)

    return operator


ALL = {"deterministic", "guarded", "status"}
SEARCH = {"closure", "search", "monotone"}
ANY = {"objectives"}
NEWTON = {"exact curvature", *ANY, *ALL}
MAXIMIZE = {"maximize", "groups"}
CATEGORICAL = ("categorical",)
SQUARED = ("squared",)
LAYERED = (*PLAIN, "unused")
KFAC_OFFERS = frozenset({"closure", "plain", "weight decay", *MAXIMIZE, *ALL})
OURS = [
    Optimizer(
        "NaturalGradient",
        lambda model: NaturalGradient(model, likelihood="categorical", max_iterations=8),
        frozenset({"plain", *SEARCH, *MAXIMIZE, *ALL}), CATEGORICAL,
    ),
    Optimizer(
        "NaturalGradient, undamped",
        lambda model: NaturalGradient(
            model, likelihood="categorical", damping=0.0, solver=exactly
        ),
        frozenset({"plain", "natural gradient", *SEARCH, *ALL}), CATEGORICAL, networks=(),
    ),
    Optimizer(
        "NaturalGradient, of a metric",
        lambda model: NaturalGradient(
            model.parameters(), curvature=gauss_newton(model), max_kl=1e30, damping=0.0, rtol=1e-12
        ),
        frozenset({"plain", *NEWTON}), networks=(),
    ),
    Optimizer(
        "HessianFree", partial(HessianFree, max_iterations=8),
        frozenset({"plain", *SEARCH, *MAXIMIZE, *ALL}), CATEGORICAL,
    ),
    Optimizer(
        "HessianFree, of a metric",
        lambda model: HessianFree(
            model.parameters(), curvature=gauss_newton(model), damping=1e-12, rtol=1e-12,
            progress=1e-14,
        ),
        frozenset({*SEARCH, *NEWTON}), networks=(),
    ),
    Optimizer(
        "LevenbergMarquardt", LevenbergMarquardt,
        frozenset({"plain", "groups", *SEARCH, *ALL}), SQUARED,
    ),
    Optimizer(
        "LevenbergMarquardt, of residuals", lambda model: LevenbergMarquardt(model.parameters()),
        frozenset({
            "residuals", "search", "monotone", "minimiser", "groups", "scale invariant", *ANY, *ALL
        }), SQUARED,
    ),
    Optimizer(
        "LevenbergMarquardt, unbounded",
        lambda model: LevenbergMarquardt(model.parameters(), radius=float("inf")),
        frozenset({"residuals", "natural gradient", *NEWTON}), SQUARED, networks=(),
    ),
    Optimizer(
        "TrustRegionNewton", lambda model: TrustRegionNewton(model.parameters(), radius=0.5),
        frozenset({*SEARCH, "minimiser", "scale invariant", *MAXIMIZE, *ANY, *ALL}),
    ),
    Optimizer(
        "TrustRegionNewton, of its own radius",
        lambda model: TrustRegionNewton(model.parameters()),
        frozenset({*SEARCH, "minimiser", *ANY, *ALL}), networks=(),
    ),
    Optimizer(
        "TrustRegionNewton, unbounded",
        lambda model: TrustRegionNewton(model.parameters(), radius=1e30, rtol=1e-12),
        frozenset({"closure", *NEWTON}), networks=(),
    ),
    Optimizer(
        "NonlinearCG", lambda model: NonlinearCG(model.parameters()),
        frozenset({*SEARCH, "minimiser", "scale invariant", "maximize", *ANY, *ALL}),
    ),
    Optimizer(
        "KFAC", partial(KFAC, likelihood="categorical", lr=0.05, refresh_every=3),
        KFAC_OFFERS, CATEGORICAL, LAYERED,
    ),
    Optimizer(
        "KFAC, corrected",
        partial(KFAC, likelihood="categorical", lr=0.05, refresh_every=3, corrected=True),
        KFAC_OFFERS, CATEGORICAL, LAYERED,
    ),
    Optimizer(
        "AdaptiveKFAC", partial(AdaptiveKFAC, likelihood="categorical", refresh_every=3),
        frozenset({"closure", "plain", "monotone", *MAXIMIZE, *ALL}), CATEGORICAL, LAYERED,
    ),
]  # fmt: skip
TORCH = [
    torch_optim.adapt("Adam", torch.optim.Adam),
    torch_optim.adapt("SGD", torch.optim.SGD),
]


@parametrize_with_checks([*OURS, *TORCH], "optimizer")
def test_what_an_optimizer_claims_holds(subject, check):
    check(subject, examples=2)


@pytest.mark.slow
@parametrize_with_checks([*OURS, *TORCH], "optimizer")
def test_what_an_optimizer_claims_holds_in_many_cases(subject, check):
    check(subject, seed=0)


def test_the_first_radius_does_not_turn_on_rounding():
    newton = Optimizer(
        "TrustRegionNewton", lambda model: TrustRegionNewton(model.parameters()), frozenset(ALL)
    )
    training = Training("convolution", "categorical", "closure", seed=63471)
    run, other = newton.begin(training), newton.begin(training)
    other.optimizer.param_groups[0]["params"].reverse()
    for theta, expected in zip(other.path(2), run.path(2), strict=True):
        torch.testing.assert_close(theta, expected, rtol=1e-6, atol=1e-9)
