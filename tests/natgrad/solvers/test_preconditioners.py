from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from natgrad.solvers import Status, cg, minres, steihaug
from natgrad.solvers.preconditioners import jacobi, kronecker, nystrom
from natgrad.testing.strategies import matrix_with_spectrum, spd_matrices, vectors_like

SEEDS = st.integers(0, 2**31 - 1)
FLOAT64 = (torch.float64,)
NAN, INF = float("nan"), float("inf")


@dataclass
class LowRank:
    """U diag(λ) Uᵀ."""

    vectors: torch.Tensor
    eigenvalues: torch.Tensor


def leading(A, rank):
    """The best approximation of that rank."""
    eigenvalues, vectors = torch.linalg.eigh(A)
    start = len(A) - rank
    return LowRank(vectors[:, start:], eigenvalues[start:])


@dataclass
class Inverse:
    """An approximation that is the matrix itself."""

    A: torch.Tensor

    @property
    def shape(self):
        return tuple(self.A.shape)

    @property
    def device(self):
        return self.A.device

    def solve(self, b, *, damping):
        return torch.linalg.solve(self.A + damping * torch.eye(len(b), dtype=b.dtype), b)


def columns(preconditioner, n, dtype=torch.float64):
    """The dense matrix of a preconditioner."""
    return torch.stack([preconditioner @ e for e in torch.eye(n, dtype=dtype)], dim=1)


@given(spd_matrices(dtypes=FLOAT64), SEEDS, st.floats(-4, 1).map(lambda power: 10.0**power))
def test_the_damped_matrix_itself_needs_one_iteration(A, seed, damping):
    b = vectors_like(A, seed=seed)
    damped = A + damping * torch.eye(len(A), dtype=torch.float64)
    inverses = [
        kronecker(Inverse(A), damping),
        nystrom(leading(A, len(A)), damping),  # of full rank: a multiple of the inverse
    ]
    for preconditioner in inverses:
        for solve in (cg, minres):
            s = solve(damped, b, preconditioner=preconditioner, rtol=1e-8)
            assert (s.status, s.iterations) == (Status.CONVERGED, 1)
    diagonal = A.diagonal().diag()
    s = cg(diagonal, b, preconditioner=jacobi(A.diagonal()), rtol=1e-8)
    assert (s.status, s.iterations) == (Status.CONVERGED, 1)


@pytest.mark.parametrize(
    ("solve", "power"), [(cg, -600), (cg, -60), (cg, 600), (minres, -60), (minres, 60)]
)
def test_a_power_of_two_in_the_preconditioner_changes_no_bit(solve, power):
    A = matrix_with_spectrum(torch.logspace(0, 2, 20, dtype=torch.float64), seed=0)
    b, inverse = vectors_like(A, seed=1), jacobi(A.diagonal())
    plain = solve(A, b, preconditioner=inverse, rtol=1e-8)
    scaled = solve(A, b, preconditioner=lambda v: 2.0**power * (inverse @ v), rtol=1e-8)
    assert plain.status is Status.CONVERGED
    assert plain.iterations > 5
    assert (scaled.status, scaled.iterations) == (plain.status, plain.iterations)
    assert torch.equal(scaled.x, plain.x)


@given(spd_matrices(max_size=10, max_log10_condition=2, dtypes=FLOAT64), SEEDS)
def test_jacobi_is_a_change_of_variables_to_unit_diagonal(A, seed):
    b, d = vectors_like(A, seed=seed), A.diagonal().rsqrt()
    for k in range(1, 4):
        left = cg(A, b, preconditioner=jacobi(A.diagonal()), rtol=0.0, max_iterations=k)
        right = cg(d[:, None] * A * d, d * b, rtol=0.0, max_iterations=k)
        size = float(left.x.norm())
        assert torch.allclose(left.x, d * right.x, rtol=1e-7, atol=1e-9 * size)


@given(st.lists(st.floats(0, 4), min_size=1, max_size=8), st.floats(0.1, 3), st.floats(0.1, 1))
def test_jacobi_is_the_power_of_the_damped_diagonal(diagonal, damping, exponent):
    d = torch.tensor(diagonal, dtype=torch.float64)
    dense = columns(jacobi(d, damping=damping, exponent=exponent), len(d))
    assert torch.allclose(dense, ((d + damping) ** -exponent).diag(), rtol=1e-14)


def test_jacobi_pays_where_the_diagonal_is_the_trouble():
    scales = torch.logspace(-3, 3, 60, dtype=torch.float64)
    core = matrix_with_spectrum(torch.linspace(1, 4, 60, dtype=torch.float64), seed=0)
    A = scales[:, None] * core * scales
    b = vectors_like(A, seed=1)
    s = cg(A, b, preconditioner=jacobi(A.diagonal()), rtol=1e-6)
    assert s.status is Status.CONVERGED
    assert 4 * s.iterations < cg(A, b, rtol=1e-6, max_iterations=400).iterations


@given(
    spd_matrices(max_size=12, dtypes=FLOAT64),
    st.integers(0, 12),
    st.floats(-3, 1).map(lambda power: 10.0**power),
)
def test_nystrom_is_its_formula(A, rank, damping):
    """(λ_min + μ) U (Λ + μ)⁻¹ Uᵀ + (I − U Uᵀ), of Frangella, Tropp & Udell."""
    low = leading(A, min(rank, len(A)))
    U, eigenvalues = low.vectors, low.eigenvalues
    expected = torch.eye(len(A), dtype=torch.float64)
    if len(eigenvalues):
        factor = (eigenvalues.min() + damping) / (eigenvalues + damping)
        expected = (U * factor) @ U.mT + expected - U @ U.mT
    dense = columns(nystrom(low, damping), len(A))
    assert torch.allclose(dense, expected, rtol=0.0, atol=1e-13)
    assert float(torch.linalg.eigvalsh((dense + dense.mT) / 2)[0]) > 0
    # By the best approximation, the leading eigenvalues of A + μ I all become the smallest of them.
    damped = A + damping * torch.eye(len(A), dtype=torch.float64)
    spectrum = torch.linalg.eigvals(dense @ damped).real.sort().values
    left = torch.linalg.eigvalsh(A)
    if len(eigenvalues):
        left = torch.minimum(left, eigenvalues.min())
    assert torch.allclose(spectrum, left + damping, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("solve", [cg, minres])
def test_nystrom_pays_where_the_spectrum_decays_fast(solve):
    A = matrix_with_spectrum(torch.logspace(0, -8, 100, dtype=torch.float64), seed=0)
    b = vectors_like(A, seed=1)
    damped = A + 1e-5 * torch.eye(100, dtype=torch.float64)
    plain = solve(damped, b, rtol=1e-8)
    s = solve(damped, b, preconditioner=nystrom(leading(A, 60), 1e-5), rtol=1e-8)
    assert s.status is plain.status is Status.CONVERGED
    assert s.iterations <= 15
    assert s.iterations < plain.iterations / 8


def test_they_serve_the_trust_region_and_numpy_callers():
    A = torch.linspace(1, 100, 20, dtype=torch.float64).diag()
    g = torch.ones(20, dtype=torch.float64)
    preconditioner = jacobi(A.diagonal())
    s = steihaug(A, g, 1.0, preconditioner=preconditioner)
    assert s.status is Status.BOUNDARY
    assert float((s.x @ (A @ s.x)).sqrt()) == pytest.approx(1.0, rel=1e-12)
    array = cg(A.numpy(), g.numpy(), preconditioner=preconditioner)
    assert isinstance(array.x, np.ndarray)
    assert array.iterations == 1


def test_each_knows_its_size_and_its_device():
    for preconditioner in (
        jacobi(torch.ones(3)),
        kronecker(Inverse(torch.eye(3)), 1.0),
        nystrom(leading(torch.eye(3), 2), 1.0),
        nystrom(leading(torch.eye(3), 0), 1.0),
    ):
        assert preconditioner.shape == (3, 3)
        assert preconditioner.device == torch.device("cpu")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: jacobi(torch.tensor([1.0, 0.0])), "the lowest is 0.0; add damping"),
        (lambda: jacobi(torch.tensor([1.0, -2.0]), damping=1.0), "the lowest is -1.0"),
        (lambda: jacobi(torch.tensor([1.0, NAN])), "positive and finite"),
        (lambda: jacobi(torch.tensor([1.0, INF])), "positive and finite"),
        (lambda: jacobi(torch.eye(2)), r"diagonal \(n,\), got shape \(2, 2\)"),
        (lambda: jacobi(torch.ones(2), damping=-1.0), "damping=-1.0"),
        (lambda: jacobi(torch.ones(2), damping=NAN), "damping=nan"),
        (lambda: jacobi(torch.ones(2), exponent=0.0), "exponent=0.0"),
        (lambda: jacobi(torch.ones(2), exponent=1.5), "exponent=1.5"),
        (lambda: nystrom(leading(torch.eye(3), 1), 0.0), "damping .* got 0.0"),
        (lambda: nystrom(leading(torch.eye(3), 1), NAN), "damping .* got nan"),
        (
            lambda: cg(torch.eye(3), torch.ones(3), preconditioner=jacobi(torch.ones(2))),
            "but b has 3",
        ),
        (
            lambda: cg(torch.eye(2), torch.ones(2), preconditioner=jacobi(torch.ones(2).double())),
            "preconditioner maps .* expected the same shape and dtype",
        ),
    ],
)
def test_errors_say_what_came_and_what_was_wanted(call, message):
    with pytest.raises(ValueError, match=message):
        call()
