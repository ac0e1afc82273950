"""The step of the linearised problem falls at least half as far as Cauchy's, whatever J is like."""

import math
from dataclasses import dataclass

import mpmath
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from natgrad.optim.least_squares_step import LeastSquaresStep
from natgrad.optim.linearised import Linearised
from natgrad.solvers import Status
from natgrad.testing.strategies import DTYPES

SEEDS = st.integers(0, 2**31 - 1)
DOUBLE, INF = torch.float64, math.inf
METHODS = ("dense", "sample_space", "cg")
SHAPES = [(20, 2), (9, 5), (5, 5), (5, 9), (2, 20), (1, 3), (3, 1)]
mpmath.mp.dps = 80


@dataclass
class Case:
    """J = (weights of rows) C (scales of columns), of any rank, and r."""

    J: torch.Tensor
    r: torch.Tensor
    damping: float
    radius: float
    scale: torch.Tensor | None
    prior: torch.Tensor | None
    method: str

    @property
    def linear(self):
        return Linearised(self.r, self.J, None, self.J.shape[1])


@st.composite
def cases(draw):
    m, n = draw(st.sampled_from(SHAPES))
    dtype = draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(SEEDS))

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=DOUBLE)

    def graded(*shape):
        power = draw(st.sampled_from([0.0, 0.0, 3.0, 8.0, 15.0]))
        spread = 10 ** (power * (2 * torch.rand(*shape, generator=generator, dtype=DOUBLE) - 1))
        return spread

    rank = draw(st.sampled_from([1, 2, 20]))
    C = random(m, n) if rank >= min(m, n) else random(m, rank) @ random(rank, n)
    J = (graded(m, 1) * C * graded(1, n)).to(dtype)
    r = random(m).to(dtype)
    size = float(J.double().norm())
    method = draw(st.sampled_from(METHODS))
    scaled = method != "cg" and draw(st.booleans())
    scale = J.double().norm(dim=0).to(dtype) if scaled else None
    # Beside the shortest step that could fit r.
    unit = float(r.double().norm()) * (1.0 if scaled else 1 / size)
    stiff = 1.0 if scaled else size**2
    damping = draw(st.just(0.0) | st.floats(-12, 4).map(lambda power: 10.0**power * stiff))
    radius = draw(st.just(INF) | st.floats(-12, 20).map(lambda power: 10.0**power * unit))
    prior = None
    if draw(st.booleans()):
        prior = (unit * random(n)).to(dtype)
        prior = prior if scale is None else prior / scale
    return Case(J, r, damping, radius, scale, prior, method)


def exact(tensor):
    return mpmath.matrix(tensor.tolist())


def squared(v):
    return mpmath.fsum(x * x for x in v)


def falls(case, s):
    """By how much s and the Cauchy step lower the damped model from s₀: exact, of rounded data."""
    r, J, t = case.r, case.J, s
    if case.prior is not None:  # as the step has it, in its dtype
        r, t = r + J @ case.prior, (s.double() - case.prior.double())
    if case.scale is not None:
        J, t = J / case.scale, t.double() * case.scale.double()
    r, J, t = exact(r), exact(J), exact(t)
    g, damping = J.T * r, mpmath.mpf(case.damping)
    image = J * t
    step = -mpmath.fdot(r, image) - squared(image) / 2 - damping * squared(t) / 2
    slope, bend = squared(g), squared(J * g) + damping * squared(g)
    if not slope:
        return step, mpmath.mpf(0), t
    alpha = slope / bend
    if case.radius < INF:
        alpha = min(alpha, mpmath.mpf(case.radius) / mpmath.sqrt(slope))
    return step, alpha * slope - alpha * alpha * bend / 2, t


@st.composite
def nearly_parallel_rows(draw):
    """The step that fits r is up to 1e9 times the Cauchy step: rounding it undoes what it brings,
    and rounding its sum with a prior does so again."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    n = draw(st.integers(4, 20))
    rows = torch.randn(2, n, generator=generator, dtype=torch.float64)
    rows[1] = rows[0] + 10.0 ** draw(st.integers(-9, -3)) * rows[1]
    J = (10.0 ** draw(st.integers(-10, 15)) * rows).float()
    prior = torch.randn(n, generator=generator, dtype=torch.float64) / float(J.double().norm())
    r = torch.randn(2, generator=generator)
    method = draw(st.sampled_from(["dense", "sample_space"]))
    return Case(J, r, 0.0, INF, None, prior.float(), method)


@settings(max_examples=300)
@given(cases() | nearly_parallel_rows())
def test_it_lowers_the_model_by_half_of_what_the_cauchy_step_does(case):
    step = LeastSquaresStep(case.linear, case.method, damping=case.damping, scale=case.scale,
                            prior=case.prior)  # fmt: skip
    found = step(radius=case.radius)
    if found.status is Status.NONFINITE:
        # JᵀJ v of conjugate gradients leaves float32 where ‖J‖² does.
        assert case.method == "cg"
        assert case.J.dtype == torch.float32
        assert float(case.J.double().norm()) > 1e12
        return
    fall, cauchy, t = falls(case, found.x)
    eps = torch.finfo(case.J.dtype).eps
    # What rounding s₀ + t to its dtype may cost: relative to s₀, not to t.
    lost = slack = mpmath.mpf(0)
    if case.prior is not None:
        D = 1 if case.scale is None else case.scale
        lost = 4 * eps * mpmath.sqrt(squared(exact(case.prior * D)))
        r, J_norm = exact(case.r + case.J @ case.prior), mpmath.sqrt(squared(exact(case.J / D)))
        along = J_norm * mpmath.sqrt(squared(r)) + case.damping * mpmath.sqrt(squared(t))
        slack = lost * (along + (J_norm**2 + case.damping) * lost)
    assert fall >= (mpmath.mpf("0.5") - 100 * eps) * cauchy - slack
    if case.radius < INF:
        assert mpmath.sqrt(squared(t)) <= case.radius * (1 + 10 * eps) + lost
