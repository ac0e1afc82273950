"""Curvature matrices: agreement with the definition. O6, O10-O14, O17, O19."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import strategies as st

from natgrad.testing.agreement import (
    ENTRY,
    ROUNDING,
    STANDARD_ERRORS,
    assert_draws_tend_to,
    assert_equal,
    assert_rows_follow_the_parameters,
    assert_samples_have_no_order,
)
from natgrad.testing.cases.network import NetworkCase
from natgrad.testing.check import Kind, check
from natgrad.testing.strategies import PLAIN, SEEDS
from natgrad.testing.subjects.curvature import Curvature, as_dense, suited

FUSED = ("attention", "lstm", "gru")


@check(
    "O6",
    Kind.CURVATURE,
    "A is the matrix that autograd makes of the definition, entry by entry",
    tolerance=ENTRY,
    found=["mushroom-rl#79: a wrong Fisher-vector product"],
    needs=["exact"],
    case=suited((*PLAIN, "linear")),
    cost=2.5,
)
def is_its_definition(subject: Curvature, case: NetworkCase) -> None:
    assert_equal(subject.dense(case), subject.truth(case), ROUNDING * case.eps)


@check(
    "O6c",
    Kind.CURVATURE,
    "so it is for attention and recurrent layers, whose fused kernels have no second derivative",
    tolerance=ENTRY,
    found=["pytorch#116350, #128971, #154226: neither forward derivatives nor double backward"],
    needs=["exact", "fused"],
    case=suited(FUSED),
    cost=5,
)
def is_its_definition_behind_fused_kernels(subject: Curvature, case: NetworkCase) -> None:
    assert_equal(subject.dense(case), subject.truth(case), ROUNDING * case.eps)


@check(
    "O6d",
    Kind.CURVATURE,
    "an operator that is built after the parameters moved is that of where they are now",
    tolerance=ENTRY,
    needs=["exact"],
    case=suited(),
    seed=SEEDS,
    cost=5,
)
def a_new_operator_is_of_the_new_point(subject: Curvature, case: NetworkCase, seed: int) -> None:
    subject.build(case) @ case.vectors(1)[:, 0]
    case.move(seed)
    assert_equal(subject.dense(case), subject.truth(case), ROUNDING * case.eps, "built anew")


@check(
    "O6e",
    Kind.CURVATURE,
    "when the parameters move under an operator, its product is of one point, the old or the new, "
    "or is refused",
    tolerance=ENTRY,
    needs=["exact"],
    case=suited(),
    seed=SEEDS,
    cost=5,
)
def a_product_is_of_one_point(subject: Curvature, case: NetworkCase, seed: int) -> None:
    A = subject.build(case)
    as_dense(A, case)
    old = subject.truth(case)
    case.move(seed)
    try:
        got = as_dense(A, case)
    except Exception:
        return
    new = subject.truth(case)
    distances = [float((got - at).abs().max() / at.abs().max()) for at in (old, new)]
    assert min(distances) <= ROUNDING * case.eps, (
        f"off by {distances[0]:.2g} from the old point's, {distances[1]:.2g} from the new one's"
    )


@check(
    "O10",
    Kind.CURVATURE,
    "A is the same whatever the size of the chunks that the data are taken in, uneven ones too",
    tolerance=ENTRY,
    needs=["exact", "chunks"],
    case=suited(),
    size=st.integers(1, 8),
    cost=5,
)
def chunks_make_no_difference(subject: Curvature, case: NetworkCase, size: int) -> None:
    whole = subject.dense(replace(case, chunk_size=None))
    chunked = subject.dense(replace(case, chunk_size=size))
    assert_equal(chunked, whole, ROUNDING * case.eps, f"in chunks of {size}")


@check(
    "O11",
    Kind.CURVATURE,
    "with reduction sum, A is its mean times what the mean divides by",
    tolerance=ENTRY,
    needs=["exact", "sum"],
    case=suited(),
    cost=5,
)
def a_sum_is_the_mean_times_its_divisor(subject: Curvature, case: NetworkCase) -> None:
    summed = replace(case, reduction="sum")
    got = subject.dense(summed)
    assert_equal(got, subject.truth(summed), ROUNDING * case.eps, "as a sum")
    # A Fisher matrix averages over samples, even where the loss averages over elements.
    by_loss = subject.matrix in ("gauss_newton", "hessian")
    divisor = case.terms if by_loss else len(case.targets)
    assert_equal(got, divisor * subject.dense(case), ROUNDING * case.eps, "as a sum")


@check(
    "O11b",
    Kind.CURVATURE,
    "a mean does not change when every sample is there twice, one after the other",
    tolerance=ENTRY,
    needs=["exact"],
    case=suited(),
    cost=5,
)
def twice_the_data_is_the_same_mean(subject: Curvature, case: NetworkCase) -> None:
    rows = tuple(range(len(case.targets)))
    once, twice = subject.dense(case), subject.dense(replace(case, rows=rows + rows))
    assert_equal(twice, once, ROUNDING * case.eps, "with every sample twice")


@check(
    "O11c",
    Kind.CURVATURE,
    "A is the mean of the operators of single samples, the reduction none",
    tolerance=ENTRY,
    needs=["exact"],
    case=suited(),
    cost=8,
)
def a_mean_is_that_of_single_samples(subject: Curvature, case: NetworkCase) -> None:
    count = len(case.targets)
    single = [subject.dense(replace(case, rows=(row,))) for row in range(count)]
    mean = torch.stack(single).mean(dim=0)
    assert_equal(subject.dense(case), mean, ROUNDING * case.eps, "of the whole")


@check(
    "O11d",
    Kind.CURVATURE,
    "with weights of samples, A is Σ wᵢ Aᵢ / Σ wᵢ, in chunks as well",
    tolerance=ENTRY,
    needs=["exact", "weights"],
    case=suited(),
    cost=5,
)
def weights_weigh(subject: Curvature, case: NetworkCase) -> None:
    case = replace(case, weighted=True)
    assert_equal(subject.dense(case), subject.truth(case), ROUNDING * case.eps, "weighted")


@check(
    "O12",
    Kind.CURVATURE,
    "rows and columns of parameters that the outputs do not depend on are zero, in their place",
    tolerance=f"none for zeros; {ENTRY}",
    found=["curvlinops 3.0.1: a RuntimeError about sizes, from every operator"],
    needs=["exact"],
    case=suited(("unused",)),
    cost=5,
)
def unused_parameters_have_zero_rows(subject: Curvature, case: NetworkCase) -> None:
    dense, truth = subject.dense(case), subject.truth(case)
    assert_equal(dense, truth, ROUNDING * case.eps)
    idle = ~truth.any(dim=0)
    assert not bool(dense[idle].any() | dense[:, idle].any()), "the rows of unused ones are not 0"


@check(
    "O12b",
    Kind.CURVATURE,
    "rows and columns of frozen parameters are zero, and the others are as before",
    tolerance=ENTRY,
    needs=["exact", "frozen"],
    case=suited(),
    cost=5,
)
def frozen_parameters_have_zero_rows(subject: Curvature, case: NetworkCase) -> None:
    case = replace(case, frozen=True)
    assert_equal(subject.dense(case), subject.truth(case), ROUNDING * case.eps, "frozen")
    assert not next(case.model.parameters()).requires_grad, "the frozen parameter was thawed"


@check(
    "O12d",
    Kind.CURVATURE,
    "rows and columns of an embedding's padding are zero, as its gradient is",
    tolerance=ENTRY,
    found=[
        "pytorch#93950: an embedding's forward derivative does not know of padding, its backward "
        "does. So curvlinops 3.0.1's GGN, Hessian and empirical Fisher matrix are not symmetric",
    ],
    needs=["exact"],
    case=suited(("embedding",)),
    cost=5,
)
def padding_has_zero_rows(subject: Curvature, case: NetworkCase) -> None:
    assert_equal(subject.dense(case), subject.truth(case), ROUNDING * case.eps)


@check(
    "O13",
    Kind.CURVATURE,
    "a weight that is used twice counts with the sum of both derivatives",
    tolerance=ENTRY,
    needs=["exact"],
    case=suited(("tied",)),
    cost=5,
)
def tied_weights_count_for_every_use(subject: Curvature, case: NetworkCase) -> None:
    assert_equal(subject.dense(case), subject.truth(case), ROUNDING * case.eps)


@check(
    "O14",
    Kind.CURVATURE,
    "the parameters listed in another order permute the rows and columns, and nothing else",
    tolerance=ENTRY,
    needs=["exact"],
    case=suited((*PLAIN, "shapes")),
    cost=5,
)
def rows_are_in_the_order_of_the_parameters(subject: Curvature, case: NetworkCase) -> None:
    assert_rows_follow_the_parameters(subject.dense, case)


@check(
    "O14b",
    Kind.CURVATURE,
    "a parameter of shape () has one row, one of another layout its rows in the order of its "
    "entries",
    tolerance=ENTRY,
    needs=["exact"],
    case=suited(("shapes",)),
    cost=5,
)
def rows_are_in_the_order_of_the_entries(subject: Curvature, case: NetworkCase) -> None:
    assert_equal(subject.dense(case), subject.truth(case), ROUNDING * case.eps)


@check(
    "O17",
    Kind.CURVATURE,
    "with drawn labels, the mean of vᵀA v over draws tends to that of the exact matrix",
    tolerance=STANDARD_ERRORS,
    needs=["sampled"],
    case=suited(("mlp",)),
    seed=SEEDS,
    cost=8,
)
def draws_tend_to_the_exact_matrix(subject: Curvature, case: NetworkCase, seed: int) -> None:
    assert_draws_tend_to(subject.truth(case), subject.build, case, seed)


@check(
    "O19",
    Kind.CURVATURE,
    "the order of the samples makes no difference",
    tolerance=ENTRY,
    needs=["exact"],
    case=suited(),
    seed=SEEDS,
    cost=5,
)
def the_order_of_samples_is_nothing(subject: Curvature, case: NetworkCase, seed: int) -> None:
    assert_samples_have_no_order(subject.dense, case, seed)
