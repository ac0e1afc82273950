"""Kronecker factors that are wrong, and what catches them."""

import torch

from natgrad.testing.subjects.curvature import Kronecker
from tests.natgrad.testing.operators import (
    Matrix,
    assembled,
    factors,
    kronecker,
    outer_products,
    solve,
)
from tests.natgrad.testing.unruly_curvature import (
    adds_a_constant,
    leaves_a_hook,
    mixes_up_columns,
    needs_gradients_enabled,
    runs_the_model_and_its_buffers,
    writes_to_grad,
)
from tests.natgrad.testing.wrong_curvature import (
    has_the_other_sign,
    is_empirical,
    lists_parameters_in_an_order_of_its_own,
    weighs_samples_by_their_place,
)


def transposes_the_factors(case):
    return Matrix(assembled(case, [(m, torch.kron(A, G)) for m, A, G in factors(case)]))


def forgets_the_bias(case):
    found = []
    for module, A, G in factors(case):
        if module.bias is not None:
            A[-1, :-1] = A[:-1, -1] = 0
        found.append((module, torch.kron(G, A)))
    return Matrix(assembled(case, found))


def divides_both_factors_once_more(case):
    count = len(case.targets)
    return Matrix(assembled(case, [(m, torch.kron(G, A) / count) for m, A, G in factors(case)]))


def couples_layers(case):
    root = torch.linalg.cholesky(
        (kronecker(case) @ torch.eye(case.n, dtype=case.dtype))
        + 1e-3 * torch.eye(case.n, dtype=case.dtype)
    )
    return Matrix(root @ torch.ones(case.n, case.n, dtype=case.dtype) @ root.mT)


def forgets_to_correct(case):
    return kronecker(case)


def forgets_the_damping(K, b, damping):
    return solve(K, b, 1e-6)


def draws_labels_of_another_model(case):
    labels = [torch.zeros_like(case.targets)] * case.draws
    noise = torch.randn((), generator=torch.Generator().manual_seed(case.draw_seed))
    return Matrix((1 + 0.01 * float(noise)) * outer_products(case, labels))


LAYERS = ("mlp", "linear", "unused")
KRONECKER = [
    (Kronecker.of(transposes_the_factors, kinds=LAYERS), "N6 N6b"),
    (Kronecker.of(forgets_the_bias, kinds=LAYERS), "N6b"),
    (Kronecker.of(divides_both_factors_once_more, kinds=LAYERS), "N6"),
    (Kronecker.of(is_empirical, kinds=LAYERS), "N6 N6b N6e"),
    (Kronecker.of(has_the_other_sign, kinds=LAYERS), "O5b"),
    (Kronecker.of(couples_layers, kinds=LAYERS), "N6e O12c"),
    (Kronecker.of(forgets_to_correct, ["corrected"], kinds=LAYERS), "N6c"),
    (Kronecker.of(kronecker, kinds=LAYERS, solve=forgets_the_damping), "N6d"),
    (Kronecker.of(draws_labels_of_another_model, ["sampled"], kinds=LAYERS), "O17b"),
    (Kronecker.of(leaves_a_hook, kinds=LAYERS), "O9f"),
    (Kronecker.of(runs_the_model_and_its_buffers, ["mixed"]), "O9h"),
    (Kronecker.of(writes_to_grad, kinds=LAYERS), "O9f"),
    (Kronecker.of(lists_parameters_in_an_order_of_its_own, kinds=LAYERS), "O14c"),
    (Kronecker.of(needs_gradients_enabled, ["forward"], kinds=LAYERS), "O16c"),
    (Kronecker.of(weighs_samples_by_their_place, kinds=LAYERS), "O19b"),
    (Kronecker.of(mixes_up_columns, kinds=LAYERS), "O20c"),
    (Kronecker.of(adds_a_constant, kinds=LAYERS), "O1c"),
]
