"""Inner products of long vectors, summed in float64."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 2**16  # elements: their float64 copies stay in a core's cache


def inner_products(left: Tensor, right: Tensor) -> Tensor:
    """⟨left_i, right_j⟩ (k, m), float64, of the rows of (k, n) and (m, n); of a vector (n,) without
    its dimension, so that two vectors give a scalar.

    On a CPU vectors are converted piece by piece: a float64 copy of a million elements has to be
    fetched from memory and costs several times the sum itself.

    >>> inner_products(torch.ones(2, 3), torch.ones(1, 3))
    tensor([[3.],
            [3.]], dtype=torch.float64)
    """
    size = CHUNK if left.device.type == "cpu" else max(left.shape[-1], 1)
    pairs = zip(
        torch.split(left, size, dim=-1), torch.split(right, size, dim=-1), strict=True
    )  # fmt: skip
    return torch.stack([torch.inner(a.double(), b.double()) for a, b in pairs]).sum(dim=0)
