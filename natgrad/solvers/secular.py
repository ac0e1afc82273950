"""The trust-region problem in the eigenbasis of its matrix, where it is one equation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class SecularSolution(NamedTuple):
    """The minimiser of the trust-region problem.

    Attributes
    ----------
    y
        (k,), float64.
    multiplier
        μ >= 0, 0-d.
    on_boundary
        Whether ‖y‖ = radius.
    """

    y: Tensor
    multiplier: Tensor
    on_boundary: bool


def solve_secular(eigenvalues: Tensor, c: Tensor, radius: Tensor) -> SecularSolution:
    """Minimise ½ Σ θᵢ yᵢ² − cᵀy over ‖y‖₂ <= radius: the global minimiser.

    Parameters
    ----------
    eigenvalues
        θ (k,), float64, of any sign.
    c
        The linear term (k,), float64.
    radius
        Bound on ‖y‖₂, 0-d float64, > 0.

    Returns
    -------
    SecularSolution
        (θᵢ + μ) yᵢ = cᵢ with μ >= max(0, −θ_min), and μ = 0 unless ‖y‖ = radius. Where c has no
        component in the lowest eigenspace and the rest is too short (the hard case), a vector of
        that eigenspace makes up the length.

    Notes
    -----
    The unknown is the distance from the pole, μ − max(0, −θ_min), so that a near-hard case loses no
    digits. 1/‖y‖ is concave in it: Newton's iterates rise to the root from the left and need no
    safeguard. They end where rounding stops the rise, within 100 rounds.

    Source: Moré & Sorensen, "Computing a trust region step", 1983; Conn, Gould & Toint,
    *Trust-Region Methods*, 2000, section 7.3.
    """
    lowest = eigenvalues.argmin()
    pole = torch.clamp(-eigenvalues[lowest], min=0.0)
    gaps = torch.clamp(eigenvalues + pole, min=0.0)  # exactly 0 at the pole
    free = gaps > 0
    y = torch.where(free, c / torch.where(free, gaps, 1.0), 0.0)
    length = torch.linalg.vector_norm(y / radius)
    if not bool((~free & (c != 0)).any()) and bool(length <= 1):
        # y at the pole is feasible: the minimiser where the pole is μ = 0, else the hard case.
        if not bool(pole > 0):
            return SecularSolution(y, pole, False)
        y[lowest] = radius * torch.sqrt((1 - length) * (1 + length))
        return SecularSolution(y, pole, True)
    c = c / radius  # y in units of the radius, so that no square leaves the range
    # Some |yᵢ| >= 1 at this shift: it is left of the root, and off every pole.
    shift = torch.clamp((c.abs() - gaps).amax(), min=0.0)
    for _ in range(100):
        denominator = gaps + shift
        y = torch.where(c != 0, c / denominator, 0.0)
        length = torch.linalg.vector_norm(y)
        slope = torch.where(c != 0, (y / length).square() / denominator, 0.0).sum()
        candidate = shift + (length - 1) / slope
        if not bool(candidate > shift):
            break
        shift = candidate
    return SecularSolution(y * (radius / length), pole + shift, True)
