"""The dense trust-region solution that the iterative solvers are measured against."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.optimize import brentq


@dataclass
class DenseSolution:
    """The minimiser x of ½ xᵀA x − bᵀx over ‖x‖ <= radius, its multiplier and the minimum."""

    x: torch.Tensor
    multiplier: float
    value: float


def solve_densely(A: torch.Tensor, b: torch.Tensor, radius: float) -> DenseSolution:
    """In float64, by all eigenvalues and a bracketed root; shares no line with the solvers.

    Where b's part in the lowest eigenspace is rounding (1e-14 of b), it counts as none.
    """
    eigenvalues, vectors = np.linalg.eigh(A.double().numpy())
    c = vectors.T @ b.double().numpy()
    largest = np.abs(eigenvalues).max()
    pole = max(0.0, -eigenvalues[0])
    gaps = np.maximum(eigenvalues + pole, 0.0)
    flat = gaps <= 1e-13 * largest
    hard = bool(np.linalg.norm(c[flat]) <= 1e-14 * np.linalg.norm(c))

    def y(shift: float) -> np.ndarray:
        return np.divide(c, gaps + shift, out=np.zeros_like(c), where=gaps + shift > 0)

    at_pole = np.where(flat, 0.0, y(0.0)) if hard else y(0.0)
    room = radius**2 - at_pole @ at_pole
    if (hard or not flat.any()) and room >= 0:
        answer, shift = at_pole, 0.0
        if pole > 0:
            answer[0] += np.sqrt(room)
    else:
        c = np.where(flat, 0.0, c) if hard else c

        def excess(shift: float) -> float:
            return 1 / np.linalg.norm(y(shift)) - 1 / radius

        highest = float(np.linalg.norm(c)) / radius
        # No shorter than the part along the smallest gap alone.
        lowest = max(float((np.abs(c) / radius - gaps).max()), 0.0)
        shift = highest
        if excess(lowest) < 0 < excess(highest):
            shift = brentq(excess, lowest, highest, xtol=1e-300, rtol=1e-15, maxiter=500)
        elif excess(lowest) >= 0:
            shift = lowest
        answer = y(shift)
    value = 0.5 * answer @ (eigenvalues * answer) - c @ answer
    return DenseSolution(torch.from_numpy(vectors @ answer), pole + shift, float(value))


@pytest.fixture(scope="session")
def dense_trust_region():
    return solve_densely
