"""Operators made from a matrix: the algebra of a product. O1b, O2b, O3b, O6b-O9b, O20b."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from natgrad.testing import algebra
from natgrad.testing.cases.system import System
from natgrad.testing.check import Kind, check
from natgrad.testing.strategies import DTYPES, SEEDS, symmetric_systems
from natgrad.testing.subjects.operator import Operator

ROUNDING = 2.0**10


def systems(subject: Operator) -> st.SearchStrategy[System]:
    """Indefinite ones where the subject's matrix may be, float32 ones where it keeps float32."""
    dtypes = DTYPES if "float32" in subject.offers else DTYPES[:1]
    return symmetric_systems(semidefinite=subject.structure == "semidefinite", dtypes=dtypes)


def in_float64(subject: Operator) -> st.SearchStrategy[System]:
    """As :func:`systems`, in float64 only."""
    return symmetric_systems(semidefinite=subject.structure == "semidefinite")


def vectors(system: System, count: int, seed: int) -> Tensor:
    """Standard normal vectors (n, count) of the system's dtype."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(len(system), count, generator=generator, dtype=torch.float64)
    return drawn.to(system.dtype)


@check(
    "O1b",
    Kind.OPERATOR,
    "A(a u + b v) = a A u + b A v",
    tolerance="2^10 eps ‖A‖ (|a| ‖u‖ + |b| ‖v‖): sums of n <= 12 terms",
    system=systems,
    seed=SEEDS,
    a=st.sampled_from([2.0, -0.5, 1e3]),
)
def is_linear(subject: Operator, system: System, seed: int, a: float) -> None:
    A, V = subject.build(system), vectors(system, 2, seed)
    _within(system, V, A @ (a * V[:, 0] - 3 * V[:, 1]), a * (A @ V[:, 0]) - 3 * (A @ V[:, 1]), a)


@check(
    "O2b",
    Kind.OPERATOR,
    "A(c v) = c A v for c from 1e-20 to 1e20, and A 0 = 0",
    tolerance="2^10 eps |c| ‖A‖ ‖v‖, in float64",
    system=in_float64,
    seed=SEEDS,
)
def is_homogeneous(subject: Operator, system: System, seed: int) -> None:
    A, v = subject.build(system), vectors(system, 1, seed)
    for c in algebra.FACTORS:
        _within(system, v, (A @ (c * v[:, 0])) / c, A @ v[:, 0], 1.0)
    zero = A @ torch.zeros(len(system), dtype=system.dtype)
    assert not bool(zero.any()), f"A 0 has entries of {float(zero.abs().max()):.2g}"


@check(
    "O3b",
    Kind.OPERATOR,
    "⟨A u, v⟩ = ⟨u, A v⟩",
    tolerance="2^10 eps ‖A‖ ‖u‖ ‖v‖",
    system=systems,
    seed=SEEDS,
)
def is_symmetric(subject: Operator, system: System, seed: int) -> None:
    A, V = subject.build(system), vectors(system, 2, seed)
    u, v = V[:, 0].contiguous(), V[:, 1].contiguous()
    left, right = float((A @ u) @ v), float(u @ (A @ v))
    allowed = ROUNDING * system.eps * _norm(system) * float(u.norm() * v.norm())
    assert abs(left - right) <= allowed, f"⟨Au, v⟩ = {left:.9g}, ⟨u, Av⟩ = {right:.9g}"


@check(
    "O6b",
    Kind.OPERATOR,
    "A v is the matrix times v",
    tolerance="2^10 eps ‖A‖ ‖v‖",
    system=systems,
    seed=SEEDS,
)
def is_the_matrix(subject: Operator, system: System, seed: int) -> None:
    A, v = subject.build(system), vectors(system, 1, seed)
    _within(system, v, A @ v[:, 0], subject.matrix(system) @ v[:, 0], 1.0)


@check(
    "O7b",
    Kind.OPERATOR,
    "A v has the dtype, the device and the shape of v; (n, k) stays (n, k), k = 1 too",
    tolerance="none",
    needs=["columns"],
    system=systems,
    seed=SEEDS,
    k=st.integers(1, 4),
)
def keeps_dtype_and_shape(subject: Operator, system: System, seed: int, k: int) -> None:
    algebra.assert_kept(subject.build(system), vectors(system, k, seed))


@check(
    "O8b",
    Kind.OPERATOR,
    "the same product gives the same bits, and leaves the one before as it was",
    tolerance="none",
    system=systems,
    seed=SEEDS,
)
def is_repeatable(subject: Operator, system: System, seed: int) -> None:
    algebra.assert_repeatable(subject.build(system), vectors(system, 1, seed)[:, 0].contiguous())


@check(
    "O9b",
    Kind.OPERATOR,
    "neither v nor the matrix is written to, and the product is new memory without a graph",
    tolerance="none",
    system=systems,
    seed=SEEDS,
)
def writes_to_nothing(subject: Operator, system: System, seed: int) -> None:
    matrix = subject.matrix(system).clone()
    kept, state = matrix.clone(), torch.get_rng_state()
    A = subject.make(matrix)
    algebra.assert_unwritten(A, vectors(system, 1, seed)[:, 0].contiguous())
    assert torch.equal(matrix, kept), "the matrix was written to"
    assert torch.equal(torch.get_rng_state(), state), "the global generator was advanced"


@check(
    "O20b",
    Kind.OPERATOR,
    "A V is column by column A times the column, whatever the layout of V",
    tolerance="2^10 eps ‖A‖ ‖v‖ of each column",
    needs=["columns"],
    system=systems,
    seed=SEEDS,
    k=st.integers(1, 4),
)
def columns_are_the_loop_over_them(subject: Operator, system: System, seed: int, k: int) -> None:
    A, V = subject.build(system), vectors(system, k, seed)
    for product in (A @ V, A @ V.mT.contiguous().mT):
        assert product.shape == V.shape, f"A V is {tuple(product.shape)}, V is {tuple(V.shape)}"
        for index, v in enumerate(V.mT):
            _within(system, v.unsqueeze(1), product[:, index], A @ v.contiguous(), 1.0)


def _norm(system: System) -> float:
    return max(abs(value) for value in system.eigenvalues) * abs(system.A_scale)


def _within(system: System, V: Tensor, got: Tensor, expected: Tensor, factor: float) -> None:
    off = float((got.double() - expected.double()).norm())
    size = _norm(system) * float(V.norm()) * max(abs(factor), 3.0)
    allowed = ROUNDING * system.eps * size
    assert off <= allowed, f"off by {off:.2g}, allowed {allowed:.2g}"
