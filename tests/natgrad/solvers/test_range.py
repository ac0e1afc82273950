"""At the ends of the dtype's range: what claims to have converged has, and nothing is infinite."""

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.subjects import Rows
from natgrad.solvers import (
    Status,
    cg,
    cholesky,
    lanczos,
    least_squares,
    minres,
    sample_space,
    steihaug,
)
from natgrad.testing.strategies import DTYPES

RTOL = 1e-5
INF = math.inf
DOUBLE = torch.float64
# Powers of ten of which neither end is left by the entries alone.
REACH = {torch.float32: 37.0, DOUBLE: 306.0}


@st.composite
def problems(draw, square=True):
    """A matrix and a right-hand side, each entry anywhere in the dtype's range; A symmetric, and
    mostly positive definite."""
    dtype = draw(st.sampled_from(DTYPES))
    m, n = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    reach = REACH[dtype]

    def numbers(count, spread):
        middle = draw(st.floats(-reach, reach))
        powers = [
            min(max(middle + draw(st.floats(-spread, spread)), -reach - 6), reach)
            for _ in range(count)
        ]
        signs = [draw(st.sampled_from([1.0, -1.0, 1.0, 0.0])) for _ in range(count)]
        return [sign * 10.0**power for sign, power in zip(signs, powers, strict=True)]

    spread = draw(st.sampled_from([0.0, 1.0, 100.0]))
    if square:
        A = torch.tensor(numbers(n, spread), dtype=DOUBLE).abs().diag()
        if draw(st.booleans()):
            Q, _ = torch.linalg.qr(torch.randn(n, n, dtype=DOUBLE, generator=torch.Generator()))
            A = Q @ A @ Q.mT
            A = A / 2 + A.mT / 2
        m = n
    else:
        A = torch.tensor(numbers(m * n, spread), dtype=DOUBLE).reshape(m, n)
    b = torch.tensor(numbers(m, draw(st.sampled_from([0.0, 1.0, 100.0]))), dtype=DOUBLE)
    return A.to(dtype), b.to(dtype)


SIZES = st.just(0.0) | st.floats(-320, 308).map(lambda power: 10.0**power)
RADII = st.floats(-320, 308).map(lambda power: 10.0**power).filter(lambda radius: radius > 0)


def exact(tensor):
    return mpmath.matrix(tensor.tolist())


def norm(v):
    return mpmath.sqrt(mpmath.fsum(x * x for x in v))


def check(s, A, b, damping=0.0, *, dtype=None):
    """CONVERGED: ‖b − (A + λ I) x‖ <= rtol ‖b‖, but for what rounds in saying so."""
    eps = torch.finfo(dtype or s.x.dtype).eps
    assert torch.isfinite(s.x).all()
    if s.status is Status.ZERO_RHS:
        assert norm(b) == 0
        assert not s.x.any()
    if s.status in (Status.CONVERGED, Status.ZERO_RHS):
        assert torch.isfinite(s.Ax).all()
        with mpmath.workdps(60):
            x, shift = exact(s.x), mpmath.mpf(damping)
            Ax = A * x
            residual = norm(b - Ax - shift * x)
            rounding = eps * (norm(A) * norm(x) + shift * norm(x) + norm(b))
            # A x of entries below the normal ones is rounded to a multiple of the least.
            least = torch.finfo(s.x.dtype).smallest_normal * torch.finfo(s.x.dtype).eps
            rounding += len(b) * least * (1 + norm(x))
            assert residual <= RTOL * norm(b) + 2 * rounding


@settings(max_examples=150)
@pytest.mark.parametrize("solver", [cg, minres], ids=lambda solver: solver.__name__)
@given(problem=problems())
def test_products(solver, problem):
    A, b = problem
    check(solver(A, b, rtol=RTOL), exact(A), exact(b))


@settings(max_examples=150)
@given(problem=problems(), damping=SIZES)
def test_cholesky(problem, damping):
    A, b = problem
    check(cholesky(A, b, damping=damping, rtol=RTOL), exact(A), exact(b), damping, dtype=DOUBLE)


@settings(max_examples=150)
@given(problem=problems(), damping=SIZES, radius=st.just(INF) | RADII)
def test_lanczos(problem, damping, radius):
    A, b = problem
    s = lanczos(A, b, rtol=RTOL).solve(damping=damping, radius=radius)
    check(s, exact(A), exact(b), damping)
    inside(s, radius)


def inside(s, radius):
    eps = torch.finfo(s.x.dtype).eps
    least = torch.finfo(s.x.dtype).smallest_normal
    if s.status is not Status.NONFINITE and radius < INF:
        assert norm(exact(s.x)) <= mpmath.mpf(radius) * (1 + 10 * eps) + least


@settings(max_examples=150)
@given(problem=problems(), radius=RADII)
def test_steihaug(problem, radius):
    A, b = problem
    s = steihaug(A, -b, radius, rtol=RTOL)
    check(s, exact(A), exact(b))
    inside(s, radius)


@settings(max_examples=200)
@given(problem=problems(square=False), damping=SIZES, radius=st.just(INF) | RADII)
def test_least_squares(problem, damping, radius):
    J, r = problem
    s = least_squares(J).solve(r, damping=damping, radius=radius, rtol=RTOL)
    with mpmath.workdps(60):
        M = exact(J)
        check(s, M.T * M, M.T * exact(r), damping, dtype=DOUBLE)
    inside(s, radius)


@settings(max_examples=200)
@given(problem=problems(square=False), damping=SIZES, radius=st.just(INF) | RADII)
def test_sample_space(problem, damping, radius):
    J, r = problem
    gram = Rows(J)
    K = gram.to_dense()
    try:
        s = sample_space(gram).solve(r, damping=damping, radius=radius, rtol=RTOL)
    except ValueError:  # squares that left the range are not symmetric, or not semidefinite
        return
    assert torch.isfinite(s.x).all()
    if s.status is Status.CONVERGED:
        assert torch.isfinite(s.Ax).all()
        assert torch.isfinite(K).all()
        with mpmath.workdps(60):
            M, R = exact(J), exact(r)
            b = M.T * R
            x = exact(s.x)
            residual = norm(b - M.T * (M * x) - mpmath.mpf(damping) * x)
            # K, known to its rounding, stands for J Jᵀ.
            eps = torch.finfo(J.dtype).eps
            rounding = mpmath.sqrt(eps) * norm(M) * norm(R)
            # Below the normal numbers, to a multiple of the least.
            rounding += torch.finfo(J.dtype).smallest_normal * eps / norm(exact(K)) * norm(b)
            assert residual <= RTOL * norm(b) + 10 * rounding
    inside(s, radius)


def answers(A, b, **given):
    """Of every solver that takes a tolerance."""
    yield cg(A, b, **given)
    yield minres(A, b, **given)
    yield cholesky(A, b, **given)
    yield lanczos(A, b, **given).solve()
    yield lanczos(A, b, **given).solve(radius=1e-3)
    yield steihaug(A, b, 1e3, **given)
    yield least_squares(A).solve(b, **given)
    yield sample_space(Rows(A)).solve(b, **given)


def test_an_infinite_tolerance_takes_any_answer():
    A = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    for s in answers(A, torch.ones(2), rtol=INF):
        assert s.status in (Status.CONVERGED, Status.BOUNDARY)
    for s in answers(A, torch.zeros(2), rtol=INF):
        assert s.status in (Status.ZERO_RHS, Status.CONVERGED)
        assert not s.x.any()
    for s in (cg(A, torch.ones(2), atol=INF), minres(A, torch.ones(2), atol=INF)):
        assert s.status is Status.CONVERGED
    with pytest.raises(ValueError, match=r"rtol .* got nan"):
        cg(A, torch.ones(2), rtol=math.nan)


def test_a_number_of_iterations_is_an_integer():
    A, b = torch.eye(2), torch.ones(2)
    for solve in (cg, minres, lanczos, lambda A, g, **given: steihaug(A, g, 1.0, **given)):
        with pytest.raises(TypeError, match=r"max_iterations must be an integer, got 2\.5"):
            solve(A, b, max_iterations=2.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"search must be an integer, got 0\.5"):
        lanczos(A, b, search=0.5)  # type: ignore[arg-type]
    assert cg(A, b, max_iterations=torch.tensor(3)).status is Status.CONVERGED  # type: ignore[arg-type]


def test_sparse_vectors_are_refused_by_name():
    A, sparse = torch.eye(2), torch.ones(2).to_sparse()
    for call in (
        lambda: cg(A, sparse),
        lambda: minres(A, sparse),
        lambda: cholesky(A, sparse),
        lambda: lanczos(A, sparse),
        lambda: steihaug(A, sparse, 1.0),
        lambda: least_squares(A).solve(sparse),
        lambda: sample_space(Rows(A)).solve(sparse),
        lambda: least_squares(A.to_sparse()),
    ):
        with pytest.raises(TypeError, match="sparse_coo; expected a dense tensor"):
            call()


def test_nothing_is_solved_whatever_form_it_comes_in():
    for A in (torch.zeros(0, 0), lambda v: v):
        for b in (torch.zeros(0), torch.zeros(0, 2)):
            for solve in (cg, minres, cholesky):
                assert solve(A, b).status is Status.ZERO_RHS
                assert solve(A, b).x.shape == b.shape


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_number_is_solved_for_or_told(dtype):
    most = torch.finfo(dtype).max
    A = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=dtype)
    for s in answers(A, torch.full((2,), most, dtype=dtype), rtol=RTOL):
        assert torch.isfinite(s.x).all()
        assert s.status is Status.NONFINITE or torch.isfinite(s.Ax).all()


@pytest.mark.parametrize("radius", [1e-300, 1e-3, 1e300])
@pytest.mark.parametrize(("of_A", "of_g"), [(-200, 200), (200, -200), (-300, 0), (150, 150)])
def test_a_radius_is_met_where_its_ratio_to_the_scales_has_no_float(of_A, of_g, radius):
    A = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=DOUBLE) * 10.0**of_A
    g = torch.tensor([1.0, -2.0], dtype=DOUBLE) * 10.0**of_g
    whole = mpmath.mpf(10) ** (of_g - of_A)  # the size of the step without a radius
    for s in (steihaug(A, g, radius), least_squares(A).solve(g, radius=radius)):
        if radius < 1e-3 * whole:
            assert s.status in (Status.BOUNDARY, Status.NONFINITE)
            if s.status is Status.BOUNDARY:
                assert float(norm(exact(s.x)) / radius) == pytest.approx(1.0)
        inside(s, radius)
    if of_g > -200:  # and x is no 1e-400
        assert steihaug(A, g, radius).status is not Status.NONFINITE
