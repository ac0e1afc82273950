"""The checks tested: each fault is caught by the checks that are named, no right operator is."""

import dataclasses
import itertools
import re

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend

from natgrad.testing import truth
from natgrad.testing.check import Kind, Outcome
from natgrad.testing.conformance import checks_for, examine
from natgrad.testing.likelihoods import NATURAL, metric
from natgrad.testing.subjects.curvature import Curvature, Kronecker
from natgrad.testing.subjects.operator import Operator
from tests.natgrad.testing.operators import (
    JacobianProducts,
    Matrix,
    Products,
    assembled,
    corrected,
    dense_fisher,
    factors,
    fisher,
    flat,
    kronecker,
    outer_products,
    sampled_fisher,
    solve,
)

EVERYTHING = ["chunks", "forward", "frozen", "fused", "random", "sum", "weights"]
LAYERS = ("mlp", "linear", "unused")
CHECKS = {(kind, each.identifier): each for kind in Kind for each in checks_for(kind)}


def broken(subject, kind, identifiers):
    """Those that fail, of these; a few steps towards the smallest counterexample are enough."""
    found = []
    for identifier in identifiers:
        check = dataclasses.replace(CHECKS[kind, identifier], cost=25)
        verdict = check.examine(subject, examples=150)
        assert verdict.outcome is not Outcome.NOT_APPLICABLE, verdict.reason
        raised = re.match(r"\w+(Error|Exception):", verdict.reason)
        assert bool(raised) == subject.name.split(".")[-1].startswith("needs_"), verdict.reason
        found += [identifier] if verdict.outcome is Outcome.FAILED else []
    return found


def named(each):
    return getattr(each, "name", getattr(each, "value", each)).split(".")[-1]


# --- Curvature: faults of a Fisher matrix unless the entry says otherwise


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
    A = fisher(case)

    def column(v):
        size, trained = 1e-2 / float(v.norm().clamp_min(1e-300)), list(case.parameters)
        with torch.no_grad():
            y = case.model(case.inputs)
            for parameter, piece in zip(trained, case.pieces(v), strict=True):
                parameter.data = parameter.data + size * piece
            Jv = (case.model(case.inputs) - y) / size
            for parameter, piece in zip(trained, case.pieces(v), strict=True):
                parameter.data = parameter.data - size * piece
        return A.transpose((A.M @ Jv.unsqueeze(2)).squeeze(2)) / len(y)

    def product(v):
        return column(v) if v.ndim == 1 else torch.stack([column(c) for c in v.mT], dim=1)

    return Products(product)


def drops_the_second_derivative_of_the_model(case):
    return Matrix(truth.gauss_newton(case))


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


def computes_in_float32(case):
    dense = truth.fisher(case).float()
    return Products(lambda v: (dense @ v.float()).to(v.dtype))


def computes_in_bfloat16(case):
    dense = truth.fisher(case).bfloat16()
    return Products(lambda v: (dense @ v.bfloat16()).to(v.dtype))


def draws_when_built(case):
    return Matrix((1 + 1e-3 * float(torch.rand(()))) * truth.fisher(case))


def draws_new_masks_for_every_product(case):
    return Matrix(lambda: truth.fisher(case))


def draws_from_the_global_generator(case):
    A = dense_fisher(case)
    return Products(lambda v: A @ (v + 0 * torch.rand(1, dtype=v.dtype)))


def writes_to_grad(case):
    case.loss(case.inputs, case.targets).backward()
    return dense_fisher(case)


def is_triangular(case):
    return Matrix(truth.fisher(case).triu())


def adds_a_constant(case):
    A = dense_fisher(case)
    return Products(lambda v: A @ v + 1e-3)


def takes_small_vectors_for_zero(case):
    A = dense_fisher(case)
    return Products(lambda v: A @ v if float(v.norm()) > 1e-10 else torch.zeros_like(v))


STALE = {}


def remembers_the_model(case):
    return STALE.setdefault(id(case.model), (case.model, dense_fisher(case)))[1]


def mixes_two_points(case):
    A, kept = fisher(case), [p.detach().clone() for p in case.parameters]

    def product(v):
        if all(torch.equal(p, q) for p, q in zip(case.parameters, kept, strict=True)):
            return A @ v
        now, then = truth.jacobian(case), truth.metric(case.family, A.y)
        return torch.einsum("nci,ncd,ndj->ij", now, then, now) @ v / len(now)

    return Products(product)


def mixes_up_columns(case):
    A = dense_fisher(case)
    return Products(lambda v: A @ v if v.ndim == 1 else (A @ v).flip(1))


def reads_columns_by_their_memory(case):
    A = dense_fisher(case)

    def product(V):
        turned = V.ndim == 2 and not V.is_contiguous()
        return A @ (torch.as_strided(V, V.shape, (V.shape[1], 1)) if turned else V)

    return Products(product)


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


def thaws_frozen_parameters(case):
    return Matrix(truth.fisher(dataclasses.replace(case, frozen=False)))


def runs_the_model_and_its_buffers(case):
    case.model(case.inputs)
    return Matrix(torch.eye(case.n, dtype=case.dtype))


def leaves_evaluation_mode(case):
    case.model.eval()
    return Matrix(torch.eye(case.n, dtype=case.dtype))


def leaves_a_hook(case):
    case.model.register_forward_hook(lambda *_: None)
    return dense_fisher(case)


def answers_in_float64(case):
    A = dense_fisher(case)
    return Products(lambda v: (A @ v).double())


def forgets_the_column(case):
    A = dense_fisher(case)
    return Products(lambda v: (A @ v).squeeze())


def writes_to_the_vector(case):
    A = dense_fisher(case)
    return Products(lambda v: (A @ v.mul_(2)) / 2)


def answers_in_one_place(case):
    A, place = dense_fisher(case), torch.zeros(case.n, dtype=case.dtype)
    return Products(lambda v: place.copy_(A @ v) if v.ndim == 1 else A @ v)


def answers_with_a_graph(case):
    A = dense_fisher(case)
    return Products(lambda v: (A @ v) + 0 * case.parameters[0].sum())


def needs_gradients_enabled(case):
    torch.autograd.grad(case.model(case.inputs).sum(), case.parameters, allow_unused=True)
    return dense_fisher(case)


def needs_gradients_enabled_for_products(case):
    A = fisher(case)

    def product(v):
        torch.autograd.grad(case.model(case.inputs).sum(), case.parameters, allow_unused=True)
        return A @ v

    return Products(product)


def needs_fused_kernels(case):
    M = metric(case.family, case.model(case.inputs))
    return JacobianProducts(case, M, [SDPBackend.FLASH_ATTENTION])


def drops_the_last_sample(case):
    rows = case.rows or tuple(range(len(case.targets)))
    return Matrix(truth.fisher(dataclasses.replace(case, rows=rows[:-1] or rows)))


def weighs_samples_by_their_place(case):
    J, M = truth.jacobian(case), metric(case.family, case.model(case.inputs))
    place = torch.linspace(0.5, 1.5, len(J), dtype=case.dtype).view(-1, 1, 1)
    return Matrix((place * (J.mT @ M @ J)).mean(0))


def gives_padding_a_row(case):
    dense = truth.fisher(case)
    if case.network == "embedding":
        dense = dense.clone()
        dense[0, 4] = 0.01
    return Matrix(dense)


def keeps_labels_undivided(case):
    return sampled_fisher(case, scale=case.draws)


def takes_labels_of_the_data_for_draws(case):
    noise = torch.randn((), generator=torch.Generator().manual_seed(case.draw_seed))
    return Matrix((1 + 0.01 * float(noise)) * outer_products(case, [case.targets]))


def divides_the_transpose_alone(case):
    A = fisher(case)
    forward = lambda v: A.forward(v).reshape(-1)  # noqa: E731
    return forward, lambda u: A.transpose(u.reshape(A.y.shape)) / len(A.y)


def jacobian(case):
    A = fisher(case)
    return lambda v: A.forward(v).reshape(-1), lambda u: A.transpose(u.reshape(A.y.shape))


def sums_samples(case):
    A = fisher(case)
    m, N = A.y.numel(), len(A.y)
    total = torch.ones(N, N, dtype=case.dtype)
    return (
        lambda v: (total @ A.forward(v)).reshape(-1),
        lambda u: A.transpose(total @ u.reshape(N, m // N)),
    )


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
    computes_in_float32: "O6 O18",
    computes_in_bfloat16: "O6 O7c",
    draws_when_built: "O8c O9c",
    draws_new_masks_for_every_product: "O15 O9g",
    draws_from_the_global_generator: "O9c",
    writes_to_grad: "O9",
    is_triangular: "O3 O6",
    adds_a_constant: "O1 O2",
    takes_small_vectors_for_zero: "O2",
    remembers_the_model: "O6d",
    mixes_two_points: "O6e",
    mixes_up_columns: "O20",
    reads_columns_by_their_memory: "O20",
    ignores_the_reduction: "O11",
    averages_over_uneven_chunks: "O10",
    ignores_weights: "O11d",
    lists_parameters_in_an_order_of_its_own: "O14",
    reads_parameters_by_their_memory: "O14b",
    thaws_frozen_parameters: "O12b",
    runs_the_model_and_its_buffers: "O9d",
    leaves_evaluation_mode: "O9d",
    leaves_a_hook: "O9d",
    answers_in_float64: "O7",
    forgets_the_column: "O7",
    writes_to_the_vector: "O8 O9e",
    answers_in_one_place: "O8",
    answers_with_a_graph: "O9e",
    needs_gradients_enabled: "O16",
    needs_gradients_enabled_for_products: "O16b",
    needs_fused_kernels: "O6c",
    drops_the_last_sample: "O11c O19",
    weighs_samples_by_their_place: "O19",
    gives_padding_a_row: "O12d",
}
OTHERS = [
    (
        Curvature.of(drops_the_second_derivative_of_the_model, "hessian", families=NATURAL),
        "O6 O7c",
    ),
    (Curvature.of(keeps_labels_undivided, "fisher", ["sampled"]), "O17"),
    (Curvature.of(takes_labels_of_the_data_for_draws, "fisher", ["sampled"]), "O17"),
    (
        Curvature.of(fisher, "fisher", jacobian=divides_the_transpose_alone, name="transpose"),
        "O4",
    ),
    (Curvature.of(fisher, "fisher", jacobian=sums_samples, name="sums_samples"), "O4b"),
]
CURVATURE = [
    *[(Curvature.of(make, "fisher", EVERYTHING), names) for make, names in FISHER.items()],
    *OTHERS,
]


@pytest.mark.parametrize(
    ("subject", "names"), CURVATURE, ids=lambda each: getattr(each, "name", "")
)
def test_faulty_curvature_is_caught(subject, names):
    STALE.clear()
    assert broken(subject, Kind.CURVATURE, names.split()) == names.split()


# --- Kronecker factors


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


@pytest.mark.parametrize(
    ("subject", "names"), KRONECKER, ids=lambda each: getattr(each, "name", "")
)
def test_faulty_kronecker_factors_are_caught(subject, names):
    assert broken(subject, Kind.KRONECKER, names.split()) == names.split()


# --- Operators of a matrix


def reuses(matrix):
    place = torch.zeros(len(matrix), dtype=matrix.dtype)
    return Products(lambda v: place.copy_(matrix @ v))


def flips(matrix):
    return Products(lambda v: matrix @ v if v.ndim == 1 else (matrix @ v).flip(1))


def rounds(matrix):
    half = matrix.to(torch.bfloat16).to(matrix.dtype)
    return Matrix((half + half.mT) / 2)


EXPLICIT = [
    (lambda m: Matrix(m.triu()), "O3b O6b"),
    (lambda m: Matrix(-m), "O6b"),
    (rounds, "O6b"),
    (lambda m: Products(lambda v: m @ v + 1), "O1b O2b"),
    (lambda m: Products(lambda v: m @ v if float(v.norm()) > 1e-10 else 0 * v), "O2b"),
    (lambda m: Products(lambda v: (m @ v).double()), "O7b"),
    (reuses, "O8b"),
    (lambda m: Products(lambda v: m @ v.mul_(2) / 2), "O9b"),
    (lambda m: Matrix(m.mul_(2) / 2), "O9b"),
    (flips, "O20b"),
]


@pytest.mark.parametrize(("make", "names"), EXPLICIT, ids=[names for _, names in EXPLICIT])
def test_faulty_operators_are_caught(make, names):
    assert broken(Operator.of(make), Kind.OPERATOR, names.split()) == names.split()


def test_every_check_catches_a_fault():
    caught = set()
    for pairs in (CURVATURE, KRONECKER, EXPLICIT):
        caught |= {name for _, names in pairs for name in names.split()}
    kinds = (Kind.OPERATOR, Kind.CURVATURE, Kind.KRONECKER)
    every = {each.identifier for kind in kinds for each in checks_for(kind)}
    assert every - caught == set()


def test_identifiers_are_unique_and_cover_the_list():
    kinds = (Kind.OPERATOR, Kind.CURVATURE, Kind.KRONECKER)
    names = [each.identifier for kind in kinds for each in checks_for(kind)]
    assert len(names) == len(set(names))
    assert {f"O{index}" for index in range(1, 21)} | {"N2", "N6", "N8", "N9"} <= set(names)


# --- Right operators, which no check may accuse


def gauss_newton(case):
    return Matrix(truth.gauss_newton(case))


GRAPH = ["chunks", "frozen", "fused", "random"]
RIGHT = [
    (Kind.OPERATOR, Operator.of(Matrix)),
    (Kind.CURVATURE, Curvature.of(fisher, "fisher", GRAPH, jacobian=jacobian)),
    (Kind.CURVATURE, Curvature.of(dense_fisher, "fisher", ["sum", "weights", *GRAPH])),
    (Kind.CURVATURE, Curvature.of(gauss_newton, "gauss_newton", ["sum", *GRAPH])),
    (Kind.CURVATURE, Curvature.of(is_the_hessian_of_the_loss, "hessian", ["sum", *GRAPH])),
    (Kind.CURVATURE, Curvature.of(is_empirical, "empirical_fisher", ["weights", *GRAPH])),
    (Kind.CURVATURE, Curvature.of(sampled_fisher, "fisher", ["sampled"])),
    (Kind.KRONECKER, Kronecker.of(kronecker, kinds=LAYERS, solve=solve)),
    (Kind.KRONECKER, Kronecker.of(corrected, ["corrected"], kinds=LAYERS, solve=solve)),
]


def accusations(subject, kind, seeds, examples):
    verdicts = itertools.chain.from_iterable(
        examine(subject, kind, seed=seed, examples=examples) for seed in seeds
    )
    return [
        f"{v.check} at {v.counterexample}: {v.reason}"
        for v in verdicts
        if v.outcome is Outcome.FAILED
    ]


@pytest.mark.parametrize(("kind", "subject"), RIGHT, ids=named)
def test_right_operators_are_not_accused(kind, subject):
    assert accusations(subject, kind, range(2), 5) == []


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "subject"), RIGHT, ids=named)
def test_right_operators_are_not_accused_by_twenty_seeds(kind, subject):
    assert accusations(subject, kind, range(20), 10) == []
