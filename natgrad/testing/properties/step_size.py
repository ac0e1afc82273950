"""Checks of rules for the size of a step of bounded KL divergence. N3."""

from __future__ import annotations

import math

from hypothesis import strategies as st

from natgrad.testing.check import Kind, check
from natgrad.testing.subjects.step_size import StepSizeRule

EPS = 2.0**-52


@check(
    "N3",
    Kind.STEP_SIZE,
    "½ α² sᵀK s = δ for any scale of sᵀK s and δ",
    tolerance="8 eps: two square roots, a quotient and the square here",
    log10_curvature=st.integers(-280, 280),
    mantissa=st.integers(1, 9),
    log10_delta=st.integers(-12, 12),
)
def the_step_has_the_divergence_asked_for(
    rule: StepSizeRule, log10_curvature: int, mantissa: int, log10_delta: int
) -> None:
    sKs, delta = mantissa * 10.0**log10_curvature, 10.0**log10_delta
    alpha = rule(sKs, delta)
    reached = 0.5 * (alpha * math.sqrt(sKs)) ** 2
    assert abs(reached - delta) <= 8 * EPS * delta, f"½ α² sᵀK s = {reached:.17g}, δ = {delta:.17g}"


@check(
    "N3b",
    Kind.STEP_SIZE,
    "where sᵀK s is not positive or not finite there is no step: α = 0, and no exception",
    tolerance="none",
    sKs=st.sampled_from([0.0, -0.0, -1e-30, -5.0, math.nan, math.inf, -math.inf]),
)
def no_curvature_is_no_step(rule: StepSizeRule, sKs: float) -> None:
    alpha = rule(sKs, 0.01)
    assert alpha == 0, f"α = {alpha}"
