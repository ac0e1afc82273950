"""Assertions on products with a symmetric matrix, shared by all kinds of operators.

``A`` is an operator with ``A @ v``, u and v are vectors (n,), V holds columns (n, k), and
``relative`` is the slack, in units of the norms that each message names.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FACTORS = (-2.0, 1e-20, 1e20)


def assert_linear(A: Any, u: Tensor, v: Tensor, a: float, b: float, relative: float) -> None:
    """Assert A(a u + b v) = a A u + b A v."""
    Au, Av = A @ u, A @ v
    size = abs(a) * float(Au.norm()) + abs(b) * float(Av.norm())
    off = float((A @ (a * u + b * v) - (a * Au + b * Av)).norm())
    assert off <= relative * size, f"A(au + bv) is off by {off / size:.2g} of |a|‖Au‖ + |b|‖Av‖"


def assert_homogeneous(A: Any, v: Tensor, relative: float) -> None:
    """Assert A(c v) = c A v for very small and very large c, and A 0 = 0."""
    Av = A @ v
    for factor in FACTORS:
        scaled = (A @ (factor * v)) / factor
        assert bool(torch.isfinite(scaled).all()), f"A({factor:g} v) is not finite"
        off, size = float((scaled - Av).norm()), float(Av.norm())
        assert off <= relative * size, (
            f"A({factor:g} v) / {factor:g} is off by {off / size:.2g} of ‖Av‖"
        )
    zero = A @ torch.zeros_like(v)
    assert not bool(zero.any()), f"A 0 has entries of {float(zero.abs().max()):.2g}"


def assert_symmetric(A: Any, u: Tensor, v: Tensor, relative: float) -> None:
    """Assert ⟨A u, v⟩ = ⟨u, A v⟩."""
    Au, Av = A @ u, A @ v
    left, right = float(Au @ v), float(u @ Av)
    size = float(Au.norm() * v.norm() + u.norm() * Av.norm())
    assert abs(left - right) <= relative * size, f"⟨Au, v⟩ = {left:.9g}, ⟨u, Av⟩ = {right:.9g}"


def assert_kept(A: Any, v: Tensor) -> None:
    """Assert that products keep dtype, device and shape: of a vector, columns and one column."""
    for operand in (v[:, 0].contiguous(), v, v[:, :1]):
        product = A @ operand
        expected = (tuple(operand.shape), operand.dtype, operand.device)
        got = (tuple(product.shape), product.dtype, product.device)
        assert got == expected, f"A v is {got}, v is {expected}"


def assert_repeatable(A: Any, v: Tensor) -> None:
    """Assert that a second product has the same bits, though random numbers were drawn between."""
    first = A @ v
    kept = first.clone()
    torch.rand(3)
    A @ (-2 * v)
    assert torch.equal(first, kept), "the product was overwritten by the next one"
    second = A @ v
    assert torch.equal(first, second), (
        f"a second product differs by {float((first - second).abs().max()):.2g}"
    )


def assert_columnwise(A: Any, V: Tensor, relative: float) -> None:
    """Assert that A V is A times each column, for V in both memory layouts."""
    whole, turned = A @ V, A @ V.mT.contiguous().mT
    alone = torch.stack([A @ column.contiguous() for column in V.mT], dim=1)
    assert whole.shape == V.shape, f"A V is {tuple(whole.shape)}, V is {tuple(V.shape)}"
    for name, got in (("A V", whole), ("A V of a transposed layout", turned)):
        off = (got - alone).norm(dim=0) / alone.norm(dim=0).clamp_min(1e-300)
        worst = int(off.argmax())
        assert float(off[worst]) <= relative, (
            f"column {worst} of {name} is off by {float(off[worst]):.2g} from A times that column"
        )


def assert_unwritten(A: Any, v: Tensor) -> None:
    """Assert that v is unchanged, and that the product is new memory without a graph."""
    kept = v.clone()
    product = A @ v
    assert torch.equal(v, kept), "v was written to"
    assert product.data_ptr() != v.data_ptr(), "the product shares memory with v"
    assert not product.requires_grad, "the product carries a graph"


def assert_close(got: Tensor, expected: Tensor, relative: float) -> None:
    """Assert ‖got − expected‖ <= relative ‖expected‖."""
    distance = float((got - expected).norm() / expected.norm().clamp_min(1e-300))
    assert distance <= relative, f"relative distance {distance:.2g}, allowed {relative:.2g}"
