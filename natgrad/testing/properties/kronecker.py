"""Kronecker-factored curvature: exactness, algebra and side effects. N6, O1c-O20c."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from natgrad.testing import algebra
from natgrad.testing.agreement import (
    ENTRY,
    ROUNDING,
    STANDARD_ERRORS,
    assert_draws_tend_to,
    assert_equal,
    assert_rows_follow_the_parameters,
    assert_samples_have_no_order,
    assert_semidefinite,
)
from natgrad.testing.cases.network import NetworkCase
from natgrad.testing.check import Kind, check
from natgrad.testing.strategies import PLAIN, SEEDS
from natgrad.testing.subjects.curvature import Kronecker, suited
from natgrad.testing.truth import blocks


@check(
    "N6",
    Kind.KRONECKER,
    "for a deep linear network and squared error K is the Fisher matrix, layer by layer",
    tolerance=ENTRY,
    found=["curvlinops#182: Kronecker factors in the wrong order, by rows or by columns"],
    needs=["exact"],
    case=suited(("linear",), ("mse",)),
    cost=5,
)
def is_exact_for_linear_networks(subject: Kronecker, case: NetworkCase) -> None:
    assert_equal(subject.dense(case), subject.truth(case), ROUNDING * case.eps)


@check(
    "N6b",
    Kind.KRONECKER,
    "for a single sample K is the Fisher matrix, layer by layer with its bias, whatever the loss",
    tolerance=ENTRY,
    needs=["exact"],
    case=suited(("mlp", "linear"), rows=(0,)),
    cost=5,
)
def is_exact_for_one_sample(subject: Kronecker, case: NetworkCase) -> None:
    assert_equal(subject.dense(case), subject.truth(case), ROUNDING * case.eps)


@check(
    "N6c",
    Kind.KRONECKER,
    "corrected, each layer's trace is that of its Fisher block: second moments in any basis add up "
    "to E‖g‖²",
    tolerance=ENTRY,
    found=["Emerging-Optimizers#266: moments that did not follow the basis they belong to"],
    needs=["exact", "corrected"],
    case=suited(("mlp", "linear")),
    cost=5,
)
def corrected_traces_are_exact(subject: Kronecker, case: NetworkCase) -> None:
    got, expected = subject.dense(case).diagonal(), subject.truth(case).diagonal()
    start = 0
    for module in case.model.children():
        size = sum(parameter.numel() for parameter in module.parameters())
        span = slice(start, start + size)
        start += size
        one, other = float(got[span].sum()), float(expected[span].sum())
        assert abs(one - other) <= ROUNDING * case.eps * other, f"trace {one:.8g}, not {other:.8g}"


@check(
    "N6d",
    Kind.KRONECKER,
    "(K + λ I) solve(b, λ) = b",
    tolerance="2^14 eps (‖K‖ + λ) / λ, the condition of K + λ I",
    needs=["solve"],
    case=suited(),
    seed=SEEDS,
    damping=st.sampled_from([1.0, 1e-2, 1e-4]),
    cost=5,
)
def solve_is_the_damped_inverse(
    subject: Kronecker, case: NetworkCase, seed: int, damping: float
) -> None:
    assert subject.solve is not None
    K, b = subject.make(case), case.vectors(1, seed)[:, 0]
    x = subject.solve(K, b, damping)
    back = K @ x + damping * x
    condition = 1 + float(x.norm()) * damping / float(b.norm()) + 1 / damping
    off = float((back - b).norm() / b.norm())
    allowed = ROUNDING * case.eps * condition
    assert off <= allowed, f"(K + λI) x is off by {off:.2g} of ‖b‖, allowed {allowed:.2g}"


@check(
    "N6e",
    Kind.KRONECKER,
    "no entry of K couples parameters of two layers",
    tolerance="none",
    case=suited((*PLAIN, "linear")),
    cost=5,
)
def layers_are_not_coupled(subject: Kronecker, case: NetworkCase) -> None:
    dense = subject.dense(case)
    apart = dense - blocks(case, dense)
    assert not bool(apart.any()), f"entries of {float(apart.abs().max()):.2g} between two layers"


@check(
    "O1c",
    Kind.KRONECKER,
    "K(a u + b v) = a K u + b K v, and K(c v) = c K v for c from 1e-20 to 1e20",
    tolerance=ENTRY,
    case=suited(),
    seed=SEEDS,
    cost=5,
)
def is_linear(subject: Kronecker, case: NetworkCase, seed: int) -> None:
    K, V = subject.make(case), case.vectors(2, seed)
    u, v = V.mT.contiguous()
    algebra.assert_linear(K, u, v, 2.0, -3.0, ROUNDING * case.eps)
    algebra.assert_homogeneous(K, v, ROUNDING * case.eps)


@check(
    "O5b",
    Kind.KRONECKER,
    "K is symmetric and positive semidefinite",
    tolerance="2^14 eps of the largest eigenvalue",
    case=suited(),
    cost=5,
)
def is_symmetric_positive_semidefinite(subject: Kronecker, case: NetworkCase) -> None:
    dense = subject.dense(case)
    assert_equal(dense.mT, dense, ROUNDING * case.eps, "the transpose")
    assert_semidefinite(dense, ROUNDING * case.eps)


@check(
    "O9f",
    Kind.KRONECKER,
    "building and multiplying leave .grad, the global generator, training mode, buffers and hooks "
    "as they were",
    tolerance="none",
    case=suited(("mlp", "linear")),
    cost=5,
)
def the_model_is_left_alone(subject: Kronecker, case: NetworkCase) -> None:
    _assert_left_alone(subject, case)


@check(
    "O9h",
    Kind.KRONECKER,
    "so they do where batch normalisation, in training mode, has parameters and buffers as well",
    tolerance="none",
    needs=["mixed"],
    case=suited(("normalised",)),
    cost=8,
)
def normalisation_is_left_alone(subject: Kronecker, case: NetworkCase) -> None:
    _assert_left_alone(subject, case)


def _assert_left_alone(subject: Kronecker, case: NetworkCase) -> None:
    _ = case.inputs, case.targets
    model = case.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = sum(len(module._forward_hooks) for module in model.modules())
    state = torch.get_rng_state()
    subject.make(case) @ case.vectors(2)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was advanced"
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} was changed"
    assert all(parameter.grad is None for parameter in model.parameters()), ".grad was set"
    assert model.training, "training mode was changed"
    left = sum(len(module._forward_hooks) for module in model.modules())
    assert left == hooks, "a hook was left on the model"


@check(
    "O12c",
    Kind.KRONECKER,
    "rows of parameters that the outputs do not depend on are zero, in their place",
    tolerance="none",
    case=suited(("unused",)),
    cost=8,
)
def unused_parameters_have_zero_rows(subject: Kronecker, case: NetworkCase) -> None:
    dense = subject.dense(case)
    idle = ~subject.truth(case).any(dim=0)
    assert not bool(dense[idle].any() | dense[:, idle].any()), "the rows of unused ones are not 0"
    used = dense.diagonal()[~idle]
    assert bool((used > 0).all()), "a parameter that is used has a zero row"


@check(
    "O14c",
    Kind.KRONECKER,
    "the parameters listed in another order permute the rows and columns, and nothing else",
    tolerance=ENTRY,
    case=suited(("mlp", "linear", "tokens")),
    cost=5,
)
def rows_are_in_the_order_of_the_parameters(subject: Kronecker, case: NetworkCase) -> None:
    assert_rows_follow_the_parameters(subject.dense, case)


@check(
    "O16c",
    Kind.KRONECKER,
    "built and used under no_grad, it is the same matrix",
    tolerance=ENTRY,
    needs=["forward"],
    case=suited(),
    cost=5,
)
def gradient_mode_is_nothing(subject: Kronecker, case: NetworkCase) -> None:
    expected = subject.dense(case)
    with torch.no_grad():
        got = subject.dense(case)
    assert_equal(got, expected, ROUNDING * case.eps, "under no_grad")


@check(
    "O17b",
    Kind.KRONECKER,
    "for a deep linear network, the mean of vᵀK v over draws of labels tends to that of the Fisher "
    "matrix, layer by layer",
    tolerance=STANDARD_ERRORS,
    needs=["sampled"],
    case=suited(("linear",), ("mse",)),
    seed=SEEDS,
    cost=8,
)
def draws_tend_to_the_exact_matrix(subject: Kronecker, case: NetworkCase, seed: int) -> None:
    assert_draws_tend_to(subject.truth(case), subject.make, case, seed)


@check(
    "O19b",
    Kind.KRONECKER,
    "the order of the samples makes no difference",
    tolerance=ENTRY,
    needs=["exact"],
    case=suited(PLAIN),
    seed=SEEDS,
    cost=5,
)
def the_order_of_samples_is_nothing(subject: Kronecker, case: NetworkCase, seed: int) -> None:
    assert_samples_have_no_order(subject.dense, case, seed)


@check(
    "O20c",
    Kind.KRONECKER,
    "K V is column by column K times the column, with the dtype and the shape of V",
    tolerance="2^14 eps of each ‖K v‖",
    case=suited(),
    seed=SEEDS,
    k=st.integers(1, 3),
    cost=5,
)
def columns_are_the_loop_over_them(
    subject: Kronecker, case: NetworkCase, seed: int, k: int
) -> None:
    K, V = subject.make(case), case.vectors(k, seed)
    algebra.assert_kept(K, V)
    algebra.assert_columnwise(K, V, ROUNDING * case.eps)
    algebra.assert_repeatable(K, V)
    algebra.assert_unwritten(K, V)
