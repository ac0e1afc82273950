"""Another machine's rounding, emulated: torch's products and sums taken from their other end.

A processor, a BLAS and a count of threads each choose an order of summation, and a LAPACK the signs
of vectors, and the basis of a degenerate space. What holds in one order only is not our property.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

ATEN: Any = torch.ops.aten
# What it registers, it keeps while it lives.
LIBRARY = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]


def mm(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    # The `out` overload is a kernel of its own, which stays as it was.
    out = A.new_empty(A.shape[0], B.shape[1])
    ATEN.mm.out(A.flip(1), B.flip(0), out=out)
    return out


def addmm(bias: torch.Tensor, A: torch.Tensor, B: torch.Tensor, **scales: Any) -> torch.Tensor:
    out = A.new_empty(A.shape[0], B.shape[1])
    ATEN.addmm.out(bias, A.flip(1), B.flip(0), **scales, out=out)
    return out


def bmm(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    out = A.new_empty(A.shape[0], A.shape[1], B.shape[2])
    ATEN.bmm.out(A.flip(2), B.flip(1), out=out)
    return out


def mv(A: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return mm(A, v[:, None])[:, 0]


def dot(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return mm(u[None], v[:, None])[0, 0]


def total(
    A: torch.Tensor,
    dims: list[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    exact = not (A.is_floating_point() or A.is_complex())
    dtype = dtype or (torch.int64 if exact else A.dtype)
    along = dims or list(range(A.ndim))
    out = A.new_empty(0, dtype=dtype)
    ATEN.sum.IntList_out(A.flip(along), along, keepdim, dtype=dtype, out=out)
    return out


def total_of_all(A: torch.Tensor, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    return total(A, dtype=dtype)


def eigh(A: torch.Tensor, triangle: str = "L", vectors: bool = True) -> tuple[torch.Tensor, ...]:
    values = A.new_empty(0, dtype=A.real.dtype if A.is_complex() else A.dtype)
    other = "U" if triangle == "L" else "L"  # which one it is, turned around
    values, V = ATEN._linalg_eigh.eigenvalues(
        A.flip(-1, -2), other, vectors, eigenvalues=values, eigenvectors=A.new_empty(0)
    )
    return values, V.flip(-2) if vectors else V


def install() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a kernel is replaced is what we want
        for name, kernel in (
            ("mm", mm),
            ("addmm", addmm),
            ("bmm", bmm),
            ("mv", mv),
            ("dot", dot),
            ("sum", total_of_all),
            ("sum.dim_IntList", total),
            ("_linalg_eigh", eigh),
        ):
            LIBRARY.impl(name, kernel, "CPU")  # type: ignore[no-untyped-call]
