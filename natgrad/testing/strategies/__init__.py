"""Hypothesis strategies that build from a spectrum and a seed, not entry by entry.

A counterexample then shrinks to a small, well-conditioned case of unit scale: its size, condition,
scale and seed each shrink to the simplest value that still fails.
"""

from natgrad.testing.strategies.linear import (
    SEEDS,
    operators,
    residuals,
    spectra,
    symmetric_systems,
    systems,
)
from natgrad.testing.strategies.matrices import (
    DTYPES,
    matrix_with_spectrum,
    spd_matrices,
    symmetric_matrices,
    vectors_like,
)
from natgrad.testing.strategies.problems import (
    LENGTHS,
    PLAIN,
    distributions,
    networks,
    objectives,
    rays,
    rollouts,
)

__all__ = [
    "DTYPES",
    "LENGTHS",
    "PLAIN",
    "SEEDS",
    "distributions",
    "matrix_with_spectrum",
    "networks",
    "objectives",
    "operators",
    "rays",
    "residuals",
    "rollouts",
    "spd_matrices",
    "spectra",
    "symmetric_matrices",
    "symmetric_systems",
    "systems",
    "vectors_like",
]
