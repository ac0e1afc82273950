"""Inner products of vectors longer than a piece, of rows, and of what float32 cannot sum."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from natgrad.solvers.scaling import CHUNK, inner_products


@pytest.mark.parametrize("n", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_they_are_those_of_the_whole_vectors_in_float64(n: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(n)
    left = torch.randn(2, n, dtype=dtype, generator=generator)
    right = torch.randn(3, n, dtype=dtype, generator=generator)
    expected = left.double() @ right.double().mT
    scale = left.double().norm(dim=1).unsqueeze(1) * right.double().norm(dim=1)
    assert bool(((inner_products(left, right) - expected).abs() <= 1e-14 * scale).all())
    for i in range(2):
        assert inner_products(left[i], right).shape == (3,)
        assert inner_products(left[i], right[0]).shape == ()
        assert torch.allclose(inner_products(left[i], right), expected[i], rtol=0, atol=1e-9)


def test_a_sum_beyond_float32_is_exact() -> None:
    n = 2 * CHUNK
    v = torch.full((n,), 1.0)
    v[0] = 2.0**14  # its square and ones, added one by one in float32, would lose the ones' share
    assert float(inner_products(v, v)) == 2.0**28 + n - 1


def test_nan_and_infinity_come_through() -> None:
    v = torch.ones(CHUNK + 1)
    v[-1] = torch.inf
    assert float(inner_products(v, v)) == float("inf")
    v[0] = torch.nan
    assert bool(inner_products(v, v).isnan())


def test_vectors_of_different_lengths_are_refused() -> None:
    for longer, shorter in ((CHUNK + 1, CHUNK - 1), (CHUNK + 1, CHUNK), (2 * CHUNK, CHUNK)):
        with pytest.raises((RuntimeError, ValueError)):
            inner_products(torch.ones(longer), torch.ones(shorter))


class Sums(TorchDispatchMode):
    """The lengths of the vectors whose inner products are taken."""

    def __init__(self) -> None:
        super().__init__()
        self.lengths: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket in (torch.ops.aten.dot, torch.ops.aten.mm):
            self.lengths.append(args[0].shape[-1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("device", "expected"), [("cpu", [CHUNK, CHUNK, 5]), ("meta", [2 * CHUNK + 5])]
)
def test_only_a_cpu_takes_them_piece_by_piece(device: str, expected: list[int]) -> None:
    v = torch.ones(2 * CHUNK + 5, device=device)
    with Sums() as sums:
        assert inner_products(v, v).shape == ()
    assert sums.lengths == expected
