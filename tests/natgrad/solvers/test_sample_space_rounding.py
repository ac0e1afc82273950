"""What of K = J Jᵀ is rounding takes no part in the answer, and what is not does."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bench.subjects import Rows
from natgrad.solvers import SampleSpace, Status, sample_space

DOUBLE = torch.float64


class Given:
    """K as a matrix."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def to_dense(self) -> Tensor:
        return self.matrix

    def transpose(self, u: Tensor) -> Tensor:
        return u


def test_the_rounding_of_an_entry_is_relative_to_its_row_and_column() -> None:
    """In float32, an eigenvalue of 10⁻¹² beside 1 is known where a row of J is as small."""
    found = sample_space(Given(torch.tensor([1e-12, 1.0]).diag())).eigenvalues
    assert found.tolist() == pytest.approx([1e-12, 1.0], rel=1e-6, abs=0.0)


def test_entries_known_better_than_their_dtype_have_smaller_eigenvalues() -> None:
    """1 − 2⁻²⁴ is a float32; whether the eigenvalue 2⁻²⁴ is rounding depends on its source."""
    off = 2.0**-24
    gram = Given(torch.tensor([[1.0, 1 - off], [1 - off, 1.0]]))
    assert float(SampleSpace(gram).eigenvalues[0]) == 0.0
    known = SampleSpace(gram, rounding=1e-10).eigenvalues
    assert float(known[0]) == pytest.approx(off, rel=1e-6, abs=0.0)
    assert float(SampleSpace(gram, rounding=1e-6).eigenvalues[0]) == 0.0


def test_parts_outside_the_range_do_not_lengthen_the_step() -> None:
    J = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=DOUBLE)
    r = torch.tensor([1.0, 7.0], dtype=DOUBLE)
    s = sample_space(Rows(J)).solve(r, radius=1.1)
    assert (s.status, s.multiplier) == (Status.CONVERGED, 0.0)
    assert s.x.tolist() == [1.0, 0.0]


def test_directions_below_the_rounding_have_no_part_in_the_step() -> None:
    """In float32, (1 − δ, 1 + δ) and (1 + δ, 1 − δ) have products that agree: δ² is lost."""
    delta = 1e-5
    J = torch.tensor([[1.0 - delta, 1.0 + delta], [1.0 + delta, 1.0 - delta]])
    s = sample_space(Rows(J)).solve(torch.ones(2))
    assert s.x.tolist() == pytest.approx([0.5, 0.5], abs=4 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("share", [1e-3, 0.5])
def test_on_the_boundary_the_residual_is_that_of_the_system_with_its_multiplier(
    share: float, damping: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    J = torch.randn(5, 9, generator=generator, dtype=DOUBLE)
    r = torch.randn(5, generator=generator, dtype=DOUBLE)
    space = sample_space(Rows(J))
    radius = share * float(space.solve(r, damping=damping).x.norm())
    s = space.solve(r, damping=damping, radius=radius)
    assert s.status is Status.BOUNDARY
    assert math.isclose(float(s.x.norm()), radius, rel_tol=1e-14)
    b = J.mT @ r
    residual = b - J.mT @ (J @ s.x) - (damping + s.multiplier) * s.x
    # The root of the multiplier is found to rounding, and so is the residual.
    assert float(residual.norm()) <= 1e-11 * float(b.norm())
    assert s.residual_norm <= 1e-11 * float(b.norm())
