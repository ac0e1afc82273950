"""A Kronecker-factored approximation as a preconditioner."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from natgrad.solvers.preconditioners.preconditioner import Preconditioner


class Factored(Protocol):
    """An approximation K with its own inverse, such as :class:`natgrad.curvature.Kronecker`.

    Attributes
    ----------
    shape, device
        (n, n), and where the factors live.
    """

    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def device(self) -> torch.device: ...
    def solve(self, b: Tensor, *, damping: float) -> Tensor:
        """(K + λ I)⁻¹ b for a vector b (n,) and the damping λ."""


def kronecker(approximation: Factored, damping: float) -> Preconditioner:
    """v ↦ (K + λ I)⁻¹ v for a Kronecker-factored K and damping λ.

    Parameters
    ----------
    approximation
        K, such as :class:`natgrad.curvature.Kronecker`.
    damping
        λ, in K's units: that of the system to be solved.

    Raises
    ------
    ValueError
        At a product, for a damping that the approximation refuses.

    Notes
    -----
    Cost: that of ``approximation.solve``; its factorisation, made at the first product, is kept.

    Source: Martens & Grosse, "Optimizing neural networks with Kronecker-factored approximate
    curvature", 2015, section 6.3.
    """
    return Preconditioner(
        lambda v: approximation.solve(v, damping=damping),
        approximation.shape[0],
        approximation.device,
    )
