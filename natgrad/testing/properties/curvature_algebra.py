"""Curvature matrices: the algebra of a product. O1-O5, O7, O8, O20."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import strategies as st

from natgrad.testing import algebra
from natgrad.testing.agreement import ROUNDING, assert_equal, assert_semidefinite
from natgrad.testing.cases.network import NetworkCase
from natgrad.testing.check import Kind, check
from natgrad.testing.strategies import DTYPES, PLAIN, SEEDS
from natgrad.testing.subjects.curvature import Curvature, as_dense, suited
from natgrad.testing.truth import jacobian

SUMS = "2^14 eps: sums of a few thousand terms"


@check(
    "O1",
    Kind.CURVATURE,
    "A(a u + b v) = a A u + b A v",
    tolerance=f"{SUMS}, of |a| ‖A u‖ + |b| ‖A v‖",
    case=suited(),
    seed=SEEDS,
    a=st.sampled_from([2.0, -0.5, 1e3]),
    cost=5,
)
def is_linear(subject: Curvature, case: NetworkCase, seed: int, a: float) -> None:
    u, v = case.vectors(2, seed).mT.contiguous()
    algebra.assert_linear(subject.build(case), u, v, a, -3.0, ROUNDING * case.eps)


@check(
    "O2",
    Kind.CURVATURE,
    "A(c v) = c A v for c from 1e-20 to 1e20, and A 0 = 0",
    tolerance=f"{SUMS}, in float64",
    case=suited(),
    seed=SEEDS,
    cost=5,
)
def is_homogeneous(subject: Curvature, case: NetworkCase, seed: int) -> None:
    A, v = subject.build(case), case.vectors(1, seed)[:, 0]
    algebra.assert_homogeneous(A, v, ROUNDING * case.eps)


@check(
    "O3",
    Kind.CURVATURE,
    "⟨A u, v⟩ = ⟨u, A v⟩",
    tolerance=f"{SUMS}, of ‖A u‖ ‖v‖ + ‖u‖ ‖A v‖",
    case=suited(),
    seed=SEEDS,
    cost=5,
)
def is_symmetric(subject: Curvature, case: NetworkCase, seed: int) -> None:
    u, v = case.vectors(2, seed).mT.contiguous()
    algebra.assert_symmetric(subject.build(case), u, v, ROUNDING * case.eps)


@check(
    "O4",
    Kind.CURVATURE,
    "⟨J v, u⟩ = ⟨v, Jᵀ u⟩, J the Jacobian of the outputs",
    tolerance=f"{SUMS}, of ‖J v‖ ‖u‖ + ‖v‖ ‖Jᵀ u‖",
    needs=["jacobian"],
    case=suited(),
    seed=SEEDS,
    cost=5,
)
def transpose_is_the_adjoint(subject: Curvature, case: NetworkCase, seed: int) -> None:
    assert subject.jacobian is not None
    forward, transpose = subject.jacobian(case)
    v = case.vectors(1, seed)[:, 0]
    Jv = forward(v)
    u = torch.randn(len(Jv), generator=torch.Generator().manual_seed(seed), dtype=v.dtype)
    Ju = transpose(u)
    left, right = float(Jv @ u), float(v @ Ju)
    size = float(Jv.norm() * u.norm() + v.norm() * Ju.norm())
    assert abs(left - right) <= ROUNDING * case.eps * size, (
        f"⟨Jv, u⟩ = {left:.9g}, ⟨v, Jᵀu⟩ = {right:.9g}"
    )


@check(
    "O4b",
    Kind.CURVATURE,
    "J v is the derivative of the outputs, sample by sample, along v",
    tolerance=f"{SUMS}, of the largest entry",
    needs=["jacobian"],
    case=suited(),
    seed=SEEDS,
    cost=5,
)
def jacobian_is_the_derivative(subject: Curvature, case: NetworkCase, seed: int) -> None:
    assert subject.jacobian is not None
    forward, _ = subject.jacobian(case)
    v = case.vectors(1, seed)[:, 0]
    expected = (jacobian(case) @ v).reshape(-1)
    assert_equal(forward(v), expected, ROUNDING * case.eps, "J v")


@check(
    "O5",
    Kind.CURVATURE,
    "vᵀA v >= 0",
    tolerance=f"{SUMS}, of the largest eigenvalue",
    found=["rllab#24, tensorforce#26: the square root of a negative sᵀK s, and NaN thereafter"],
    needs=["semidefinite"],
    case=suited(),
    cost=5,
)
def is_positive_semidefinite(subject: Curvature, case: NetworkCase) -> None:
    assert_semidefinite(subject.dense(case), ROUNDING * case.eps)


@check(
    "O7",
    Kind.CURVATURE,
    "A v has the dtype, the device and the shape of v; (n, k) stays (n, k), k = 1 too",
    tolerance="none",
    case=suited(dtypes=DTYPES),
    k=st.integers(1, 3),
    cost=5,
)
def keeps_dtype_and_shape(subject: Curvature, case: NetworkCase, k: int) -> None:
    algebra.assert_kept(subject.build(case), case.vectors(k))


@check(
    "O7c",
    Kind.CURVATURE,
    "in float32 it is the same matrix as in float64",
    tolerance="2^14 eps of float32, of the largest entry",
    needs=["exact"],
    case=suited(dtypes=DTYPES[1:]),
    cost=5,
)
def float32_agrees_with_float64(subject: Curvature, case: NetworkCase) -> None:
    expected = subject.truth(replace(case, dtype=torch.float64))
    assert_equal(subject.dense(case).double(), expected, ROUNDING * case.eps)


@check(
    "O8",
    Kind.CURVATURE,
    "the same product gives the same bits, and leaves the one before as it was",
    tolerance="none",
    case=suited(),
    seed=SEEDS,
    cost=5,
)
def is_repeatable(subject: Curvature, case: NetworkCase, seed: int) -> None:
    algebra.assert_repeatable(subject.build(case), case.vectors(1, seed)[:, 0])


@check(
    "O8c",
    Kind.CURVATURE,
    "an operator that is built again from the same model and data is the same",
    tolerance=SUMS,
    case=suited(),
    cost=5,
)
def building_is_repeatable(subject: Curvature, case: NetworkCase) -> None:
    one = subject.dense(case)
    torch.rand(3)
    assert_equal(subject.dense(case), one, ROUNDING * case.eps, "built again")


@check(
    "O20",
    Kind.CURVATURE,
    "A V is column by column A times the column, whatever the layout of V",
    tolerance=f"{SUMS}, of each ‖A v‖",
    case=suited((*PLAIN, "shapes")),
    seed=SEEDS,
    k=st.integers(2, 4),
    cost=5,
)
def columns_are_the_loop_over_them(
    subject: Curvature, case: NetworkCase, seed: int, k: int
) -> None:
    A, V = subject.build(case), case.vectors(k, seed)
    V = V * torch.logspace(0, 3, k, dtype=V.dtype)  # unequal, so that a small column's error shows
    algebra.assert_columnwise(A, V, ROUNDING * case.eps)
    assert_equal(as_dense(A, case) @ V, A @ V, ROUNDING * case.eps * case.n, "A I V")
