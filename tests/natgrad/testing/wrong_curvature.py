"""Curvature operators that are another matrix than they claim, and what catches them."""

import dataclasses

import torch
from torch.func import functional_call
from torch.nn import functional as F

from natgrad.testing import truth
from natgrad.testing.likelihoods import NATURAL, metric
from natgrad.testing.subjects.curvature import Curvature
from tests.natgrad.testing.operators import (
    JacobianProducts,
    Matrix,
    Products,
    fisher,
    flat,
    outer_products,
    sampled_fisher,
)


def forgets_the_mean(case):
    return Matrix(len(case.targets) * truth.fisher(case))


def keeps_its_damping(case):
    return Matrix(truth.fisher(case) + 1e-3 * torch.eye(case.n, dtype=case.dtype))


def has_the_other_sign(case):
    return Matrix(-truth.fisher(case))


def is_empirical(case):
    return Matrix(truth.empirical_fisher(case))


def is_the_hessian_of_the_loss(case):
    return Matrix(truth.hessian(case))


def forgets_that_probabilities_add_up(case):
    M = metric(case.family, case.model(case.inputs))
    if case.family == "categorical":
        M = torch.diag_embed(case.model(case.inputs).detach().softmax(-1))
    return JacobianProducts(case, M)


def counts_a_deviation_once(case):
    y = case.model(case.inputs).detach()
    M = metric(case.family, y).clone()
    if case.family == "gaussian":  # as if F of σ were 1/σ², not 2/σ²
        M -= metric("gaussian", y) - metric("laplace", y)
    return JacobianProducts(case, M)


def differentiates_by_finite_differences(case):
    A, names = fisher(case), [name for name, _ in case.model.named_parameters()]

    def column(v):
        size = 1e-2 / float(v.norm().clamp_min(1e-300))
        pairs = zip(names, case.parameters, case.pieces(v), strict=True)
        moved = {name: parameter.detach() + size * piece for name, parameter, piece in pairs}
        Jv = (functional_call(case.model, moved, (case.inputs,)) - A.y.detach()) / size
        return A.transpose((A.M @ Jv.unsqueeze(2)).squeeze(2)) / len(A.y)

    def product(v):
        return column(v) if v.ndim == 1 else torch.stack([column(c) for c in v.mT], dim=1)

    return Products(product)


def counts_a_tied_weight_once(case):
    if case.network != "tied":
        return fisher(case)
    W, b = case.model.weight, case.model.bias
    y = F.linear(F.linear(case.inputs, W, b).tanh(), W.detach(), b.detach())
    rows = [torch.autograd.grad(each, case.parameters, retain_graph=True) for each in y.flatten()]
    J = torch.stack([flat(case, row) for row in rows]).unflatten(0, y.shape)
    return Matrix((J.mT @ metric(case.family, y) @ J).mean(0))


def leaves_out_rows_of_unused_parameters(case):
    dense = truth.fisher(case)
    kept = torch.cat([
        torch.full((p.numel(),), "idle" not in name) for name, p in case.model.named_parameters()
    ])  # fmt: skip
    order = torch.cat([torch.nonzero(kept)[:, 0], torch.nonzero(~kept)[:, 0]])
    return Matrix(dense[order][:, order])


def gives_padding_a_row(case):
    dense = truth.fisher(case)
    if case.network == "embedding":
        dense = dense.clone()
        dense[0, 4] = 0.01
    return Matrix(dense)


def thaws_frozen_parameters(case):
    return Matrix(truth.fisher(dataclasses.replace(case, frozen=False)))


def computes_in_float32(case):
    dense = truth.fisher(case).float()
    return Products(lambda v: (dense @ v.float()).to(v.dtype))


def computes_in_bfloat16(case):
    dense = truth.fisher(case).bfloat16()
    return Products(lambda v: (dense @ v.bfloat16()).to(v.dtype))


def is_triangular(case):
    return Matrix(truth.fisher(case).triu())


def ignores_the_reduction(case):
    return Matrix(truth.fisher(dataclasses.replace(case, reduction="mean")))


def averages_over_uneven_chunks(case):
    size, count = case.chunk_size or len(case.targets), len(case.targets)
    rows = case.rows or tuple(range(count))
    chunks = [rows[start : start + size] for start in range(0, count, size)]
    means = [truth.fisher(dataclasses.replace(case, rows=chunk)) for chunk in chunks]
    return Matrix(torch.stack(means).mean(dim=0))


def ignores_weights(case):
    return Matrix(truth.fisher(dataclasses.replace(case, weighted=False)))


def lists_parameters_in_an_order_of_its_own(case):
    return Matrix(truth.fisher(dataclasses.replace(case, reverse=False)))


def reads_parameters_by_their_memory(case):
    places = case.pieces(torch.arange(case.n))
    order = torch.cat([
        (piece if p.is_contiguous() else piece.mT).reshape(-1)
        for p, piece in zip(case.parameters, places, strict=True)
    ])  # fmt: skip
    return Matrix(truth.fisher(case)[order][:, order])


def drops_the_last_sample(case):
    rows = case.rows or tuple(range(len(case.targets)))
    return Matrix(truth.fisher(dataclasses.replace(case, rows=rows[:-1] or rows)))


def weighs_samples_by_their_place(case):
    J, M = truth.jacobian(case), metric(case.family, case.model(case.inputs))
    place = torch.linspace(0.5, 1.5, len(J), dtype=case.dtype).view(-1, 1, 1)
    return Matrix((place * (J.mT @ M @ J)).mean(0))


def drops_the_second_derivative_of_the_model(case):
    return Matrix(truth.gauss_newton(case))


def keeps_labels_undivided(case):
    return sampled_fisher(case, scale=case.draws)


def takes_labels_of_the_data_for_draws(case):
    noise = torch.randn((), generator=torch.Generator().manual_seed(case.draw_seed))
    return Matrix((1 + 0.01 * float(noise)) * outer_products(case, [case.targets]))


def divides_the_transpose_alone(case):
    A = fisher(case)
    forward = lambda v: A.forward(v).reshape(-1)  # noqa: E731
    return forward, lambda u: A.transpose(u.reshape(A.y.shape)) / len(A.y)


def sums_samples(case):
    A = fisher(case)
    m, N = A.y.numel(), len(A.y)
    total = torch.ones(N, N, dtype=case.dtype)
    return (
        lambda v: (total @ A.forward(v)).reshape(-1),
        lambda u: A.transpose(total @ u.reshape(N, m // N)),
    )


EVERYTHING = ["chunks", "forward", "frozen", "fused", "random", "sum", "weights"]
FISHER = {
    forgets_the_mean: "O6 O11b N2 N9",
    keeps_its_damping: "O6 O12 N9",
    has_the_other_sign: "O5 O6 N2",
    is_empirical: "O6 O18 N2 N8b",
    is_the_hessian_of_the_loss: "O5 O6 N8",
    forgets_that_probabilities_add_up: "O6 N9",
    counts_a_deviation_once: "O6 N9",
    differentiates_by_finite_differences: "O1 O6",
    counts_a_tied_weight_once: "O13",
    leaves_out_rows_of_unused_parameters: "O12",
    gives_padding_a_row: "O12d",
    thaws_frozen_parameters: "O12b",
    computes_in_float32: "O6 O18",
    computes_in_bfloat16: "O6 O7c",
    is_triangular: "O3 O6",
    ignores_the_reduction: "O11",
    averages_over_uneven_chunks: "O10",
    ignores_weights: "O11d",
    lists_parameters_in_an_order_of_its_own: "O14",
    reads_parameters_by_their_memory: "O14b",
    drops_the_last_sample: "O11c O19",
    weighs_samples_by_their_place: "O19",
}
WRONG = [
    *[(Curvature.of(make, "fisher", EVERYTHING), names) for make, names in FISHER.items()],
    (Curvature.of(drops_the_second_derivative_of_the_model, "hessian", families=NATURAL), "O6 O7c"),
    (Curvature.of(keeps_labels_undivided, "fisher", ["sampled"]), "O17"),
    (Curvature.of(takes_labels_of_the_data_for_draws, "fisher", ["sampled"]), "O17"),
    (Curvature.of(fisher, "fisher", jacobian=divides_the_transpose_alone, name="transpose"), "O4"),
    (Curvature.of(fisher, "fisher", jacobian=sums_samples, name="sums_samples"), "O4b"),
]
