"""The Fisher matrix: its definitions, and the divergence it approximates. O18, N2, N8, N9."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from natgrad.testing.agreement import ENTRY, ROUNDING, assert_equal
from natgrad.testing.cases.network import NetworkCase
from natgrad.testing.check import Kind, check
from natgrad.testing.likelihoods import COMMON, FAMILIES, NATURAL, divergence
from natgrad.testing.strategies import PLAIN, SEEDS
from natgrad.testing.subjects.curvature import Curvature, as_dense, suited
from natgrad.testing.truth import expected_scores, fisher, gauss_newton, kl_hessian

SMOOTH = tuple(family for family in FAMILIES if family != "laplace")


@check(
    "O18",
    Kind.CURVATURE,
    "F is the Hessian of the mean KL(p_old ‖ p_θ) at θ_old, differentiated twice through the "
    "network",
    tolerance=ENTRY,
    needs=["exact", "fisher"],
    case=suited(PLAIN, SMOOTH),
    cost=5,
)
def is_the_hessian_of_the_divergence(subject: Curvature, case: NetworkCase) -> None:
    assert_equal(subject.dense(case), kl_hessian(case), ROUNDING * case.eps)


@check(
    "N2",
    Kind.CURVATURE,
    "KL(θ, θ + ε s) = ½ ε² sᵀF s + O(ε³)",
    tolerance="the error falls by 8³ from ε = 2^-6 to 2^-9; 8^2.5 is asked for, above 1e-8 of KL",
    needs=["exact", "fisher"],
    case=suited(PLAIN, SMOOTH),
    seed=SEEDS,
    cost=5,
)
def half_the_form_is_the_divergence(subject: Curvature, case: NetworkCase, seed: int) -> None:
    case = replace(case, chunk_size=None)
    s = case.vectors(1, seed)[:, 0]
    curvature = fisher(case)
    s = s / (s @ curvature @ s).sqrt()
    sFs = float(s @ (subject.build(case) @ s))
    old = case.model(case.inputs).detach()
    coarse, fine = (_error(case, old, s, sFs, 2.0**-power) for power in (6, 9))
    allowed = max(coarse / 8**2.5, 1e-8 * 2.0**-18 / 2)
    assert fine <= allowed, (
        f"the error falls from {coarse:.3g} to {fine:.3g}, not below {allowed:.3g}; sᵀF s = "
        f"{sFs:.6g}, should be 1"
    )


@check(
    "N8",
    Kind.CURVATURE,
    "in natural parameters the Fisher matrix, the Hessian of the divergence, the expected outer "
    "product of scores and the generalised Gauss-Newton matrix of −log p are one",
    tolerance=ENTRY,
    needs=["exact", "semidefinite"],
    case=suited(("mlp", "linear"), NATURAL),
    cost=5,
)
def natural_parameters_make_all_one(subject: Curvature, case: NetworkCase) -> None:
    if subject.matrix == "empirical_fisher":  # it is none of the four, in spite of its name
        return
    got = subject.dense(case)
    if subject.matrix == "gauss_newton":
        # From torch's loss to −log p: by samples, not elements, and with the ½ of a normal.
        got = got * case.terms / len(case.targets) / (2 if case.family == "mse" else 1)
    scale = case.terms / len(case.targets) / (2 if case.family == "mse" else 1)
    definitions = {
        "the metric's": fisher(case),
        "the divergence's": kl_hessian(case),
        "the scores'": expected_scores(case),
        "Gauss and Newton's": gauss_newton(case) * scale,
    }
    for name, expected in definitions.items():
        assert_equal(got, expected, ROUNDING * case.eps, name)


@check(
    "N8b",
    Kind.CURVATURE,
    "F is the expected outer product of scores under the model's own labels, not the data's",
    tolerance=ENTRY,
    needs=["exact", "fisher"],
    case=suited(PLAIN, COMMON),
    cost=8,
)
def is_the_expected_outer_product_of_scores(subject: Curvature, case: NetworkCase) -> None:
    assert_equal(subject.dense(case), expected_scores(case), ROUNDING * case.eps)


@check(
    "N9",
    Kind.CURVATURE,
    "in the parameters of a distribution itself: diag(p) − p pᵀ for a softmax, 1/σ² for the mean "
    "and 2/σ² for the deviation of a normal, p(1 − p) for a coin",
    tolerance=ENTRY,
    needs=["exact", "fisher"],
    case=suited(("free",), COMMON),
    cost=2.5,
)
def closed_forms(subject: Curvature, case: NetworkCase) -> None:
    y = case.parameters[0].detach()
    expected = torch.zeros(3, 3, dtype=y.dtype)
    if case.family == "categorical":
        p = y.softmax(0)
        expected = p.diag() - torch.outer(p, p)
    elif case.family == "bernoulli":
        expected = (y.sigmoid() * (1 - y.sigmoid())).diag()
    elif case.family == "mse":
        expected = torch.eye(3, dtype=y.dtype)
    else:  # means y₀, y₁; deviations σ = softplus of y₁, y₂, whose derivative is a sigmoid
        deviation, slope = (1 + y[1:].exp()).log(), y[1:].sigmoid()
        expected[[0, 1], [0, 1]] += deviation**-2
        expected[[1, 2], [1, 2]] += 2 * deviation**-2 * slope**2
    assert_equal(as_dense(subject.build(case), case), expected, ROUNDING * case.eps)


def _error(case: NetworkCase, old: Tensor, s: Tensor, sFs: float, size: float) -> float:
    """The larger of |KL − ½ ε² sᵀF s| for ±ε, in which odd and even terms cannot cancel."""
    found = []
    for step in (size, -size):
        _step(case, s, step)
        with torch.no_grad():
            kl = float(divergence(case.family, old, case.model(case.inputs)).mean())
        _step(case, s, -step)
        found.append(abs(kl - sFs * size**2 / 2))
    return max(found)


def _step(case: NetworkCase, s: Tensor, size: float) -> None:
    with torch.no_grad():
        for parameter, piece in zip(case.parameters, case.pieces(s), strict=True):
            parameter.add_(piece, alpha=size)
