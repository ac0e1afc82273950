"""The minimiser over a ball, against a dense solve that shares no line with it."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from natgrad.solvers import Status, lanczos
from natgrad.testing.strategies import vectors_like

SOLVED = (Status.CONVERGED, Status.BOUNDARY, Status.ZERO_RHS)


@dataclass
class Case:
    """½ xᵀA x − bᵀx over ‖x‖ <= radius, with ‖A‖ <= 1."""

    A: torch.Tensor
    b: torch.Tensor
    radius: float

    @property
    def scale(self) -> float:
        """The size of the model's terms on the boundary: what a tolerance relates to."""
        return float(self.b.norm()) * self.radius + self.radius**2

    def value(self, x: torch.Tensor) -> float:
        x = x.double()
        return float(0.5 * x @ (self.A @ x) - self.b @ x)


def build(
    spectrum: list[float], *, excited: float, degenerate: int, diagonal: bool, seed: int, power: int
) -> Case:
    """``excited`` is b's part in each of the ``degenerate`` lowest eigenvectors, where the others
    have one or so; zero is exact in the basis of the axes, else to rounding."""
    eigenvalues = torch.tensor(spectrum, dtype=torch.float64).sort().values
    eigenvalues[:degenerate] = eigenvalues[0]
    n = len(eigenvalues)
    coefficients = vectors_like(eigenvalues.diag(), seed=seed)
    coefficients[: max(degenerate, 1)] *= excited
    basis = torch.eye(n, dtype=torch.float64)
    if not diagonal:
        basis, _ = torch.linalg.qr(
            vectors_like(torch.eye(n * n, dtype=torch.float64), seed=seed + 1).reshape(n, n)
        )
    A = (basis * eigenvalues) @ basis.mT
    return Case((A + A.mT) / 2, basis @ coefficients, 10.0 ** (power / 10))


EITHER, ONE = st.booleans(), st.just(1)


def cases(spectra, *, excited, diagonal=EITHER, degenerate=ONE):
    return st.builds(
        build,
        spectra,
        excited=excited,
        degenerate=degenerate,
        diagonal=diagonal,
        seed=st.integers(0, 2**31 - 1),
        power=st.integers(-30, 40),
    )


INDEFINITE = st.lists(st.integers(-990, 1000), max_size=9).map(
    lambda thousandths: [-1.0, *(value / 1000 for value in thousandths)]
)
DEFINITE = st.lists(st.floats(-4, 0), min_size=1, max_size=10).map(
    lambda powers: [10.0**power for power in powers]
)
NEARLY = st.floats(-15, -2).map(lambda power: 10.0**power)
FAMILIES = {
    "definite": cases(DEFINITE, excited=ONE),
    "definite, its lowest curvature not in b": cases(DEFINITE, excited=st.just(0.0)),
    "indefinite": cases(INDEFINITE, excited=ONE),
    "hard, exactly": cases(INDEFINITE, excited=st.just(0.0), diagonal=st.just(True)),
    "hard, to rounding": cases(INDEFINITE, excited=st.just(0.0), diagonal=st.just(False)),
    "nearly hard": cases(INDEFINITE, excited=NEARLY),
    "degenerate": cases(INDEFINITE, excited=ONE, degenerate=st.integers(2, 4)),
    "degenerate and hard": cases(INDEFINITE, excited=st.just(0.0), degenerate=st.integers(2, 4)),
}
EVERY = st.one_of(*FAMILIES.values())
USUAL = settings().max_examples  # 100, or what the profile has
few = settings(max_examples=USUAL // 2)  # of several solves each


@pytest.mark.parametrize("family", FAMILIES)
def test_it_agrees_with_a_dense_solve(family, dense_trust_region):
    """Of 8 families, 255 cases each: (A + μ I) x = b, μ >= 0, μ (radius − ‖x‖) = 0, A + μ I
    positive semidefinite; and so the global minimum."""
    rtol = 1e-9

    @settings(max_examples=255 * USUAL // 100)
    @given(FAMILIES[family])
    def agree(case):
        s = lanczos(case.A, case.b, rtol=rtol).solve(radius=case.radius)
        assert s.status in SOLVED
        length, mu, eps = float(s.x.norm()), s.multiplier, 2.3e-16
        assert length <= case.radius * (1 + 4 * eps)
        assert mu >= 0
        if mu > 0:
            assert s.status is Status.BOUNDARY
            assert length >= case.radius * (1 - 1e-12)
        lowest = float(torch.linalg.eigvalsh(case.A)[0])
        assert lowest + mu >= -rtol
        residual = case.A @ s.x + mu * s.x - case.b
        allowed = rtol * (float(case.b.norm()) + length)
        assert float(residual.norm()) <= allowed
        best = dense_trust_region(case.A, case.b, case.radius)
        # ‖r‖ ‖x − x*‖ bounds what a residual r costs, 2 δ radius² what a curvature of −δ does.
        assert case.value(s.x) <= best.value + 2 * case.radius * allowed + 2 * rtol * case.scale
        assert case.value(s.x) >= best.value - 1e-12 * case.scale

    agree()


@few
@given(EVERY)
def test_the_multiplier_is_the_dense_one_where_it_is_well_conditioned(case):
    """μ = bᵀx / ‖x‖² − xᵀA x / ‖x‖² on the boundary."""
    s = lanczos(case.A, case.b, rtol=1e-10).solve(radius=case.radius)
    if s.status is Status.BOUNDARY:
        x = s.x
        quotient = float((case.b @ x - x @ (case.A @ x)) / (x @ x))
        size = float(case.b.norm()) / case.radius + 1
        assert abs(s.multiplier - quotient) <= 1e-8 * size
    else:
        assert s.multiplier == 0


@pytest.mark.parametrize("visible", [-0.4, 0.1])
@pytest.mark.parametrize(("n", "radius"), [(60, 30.0), (120, 3.0), (120, 30.0), (120, 1e4)])
def test_curvature_that_b_does_not_see_is_found_in_many_dimensions(
    visible, n, radius, dense_trust_region
):
    """The rest of b's Krylov space is accurate long before, its lowest eigenvalue ``visible``."""
    eigenvalues = torch.linspace(visible, 1, n, dtype=torch.float64)
    eigenvalues[0] = -1.0
    A = eigenvalues.diag()
    for seed in range(4):
        b = vectors_like(A, seed=seed)
        b[0] = 0.0
        s = lanczos(A, b, generator=torch.Generator().manual_seed(seed)).solve(radius=radius)
        best = dense_trust_region(A, b, radius)
        value = float(0.5 * s.x @ (A @ s.x) - b @ s.x)
        assert value <= best.value + 1e-4 * abs(best.value)
        assert s.products < n


@few
@given(EVERY)
def test_a_zero_right_hand_side_goes_to_the_boundary_where_curvature_is_negative(case):
    s = lanczos(case.A, torch.zeros_like(case.b), rtol=1e-9).solve(radius=case.radius)
    lowest = float(torch.linalg.eigvalsh(case.A)[0])
    if lowest < 0:
        assert s.status is Status.BOUNDARY
        assert float(s.x.norm()) == pytest.approx(case.radius, rel=1e-14)
        assert case.value(s.x) + float(case.b @ s.x) <= 0.5 * (lowest + 1e-8) * case.radius**2
    else:
        assert s.status is Status.ZERO_RHS
        assert not s.x.any()


@few
@given(EVERY, st.lists(st.floats(0, 3), min_size=1, max_size=3))
def test_a_smaller_radius_costs_no_product_and_answers_as_a_fresh_solve(case, powers):
    krylov = lanczos(case.A, case.b, rtol=1e-8)
    first = krylov.solve(radius=case.radius)
    assert first.products == krylov.size
    radius = case.radius
    for power in powers:
        radius = radius * 10.0**-power
        again = krylov.solve(radius=radius)
        fresh = lanczos(case.A, case.b, rtol=1e-8).solve(radius=radius)
        assert again.products == 0
        assert again.status is fresh.status
        tolerance = 1e-7 * (float(case.b.norm()) * radius + radius**2)
        assert abs(case.value(again.x) - case.value(fresh.x)) <= 4 * tolerance


@few
@given(EVERY, st.floats(-3, 3), st.floats(0, 3))
def test_a_larger_radius_goes_on_from_the_basis_that_is_there(case, power, growth):
    krylov = lanczos(case.A, case.b, rtol=1e-8)
    small = krylov.solve(radius=10.0**power)
    large = krylov.solve(radius=10.0 ** (power + growth))
    assert small.products + large.products == krylov.size <= len(case.b)
    tolerance = 1e-7 * (float(case.b.norm()) + 10.0 ** (power + growth)) * 10.0 ** (power + growth)
    assert case.value(large.x) <= case.value(small.x) + tolerance


@few
@given(cases(DEFINITE, excited=ONE), st.lists(st.floats(0, 2), min_size=1, max_size=4))
def test_every_larger_damping_is_solved_at_no_product(case, dampings):
    krylov = lanczos(case.A, case.b, rtol=1e-8)
    assert krylov.solve().status is Status.CONVERGED
    identity = torch.eye(len(case.b), dtype=torch.float64)
    for damping in dampings:
        s = krylov.solve(damping=damping)
        assert (s.status, s.products) == (Status.CONVERGED, 0)
        expected = torch.linalg.solve(case.A + damping * identity, case.b)
        lowest = float(torch.linalg.eigvalsh(case.A)[0]) + damping
        error = 1e-8 * float(case.b.norm()) / lowest
        assert float((s.x - expected).norm()) <= 1.01 * error
        assert torch.allclose(s.Ax, case.A @ s.x, atol=1e-13 * float(s.x.norm()))


@few
@given(case=EVERY, damping=st.floats(0, 2))
def test_damping_within_a_radius_is_the_dense_solve_of_the_shifted_matrix(
    case, damping, dense_trust_region
):
    s = lanczos(case.A, case.b, rtol=1e-9).solve(damping=damping, radius=case.radius)
    shifted = case.A + damping * torch.eye(len(case.b), dtype=torch.float64)
    best = dense_trust_region(shifted, case.b, case.radius)
    value = case.value(s.x) + 0.5 * damping * float(s.x @ s.x)
    assert value <= best.value + 1e-7 * case.scale
    assert float(s.x.norm()) <= case.radius * (1 + 1e-15)
