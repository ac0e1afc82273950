"""Scaling by powers of two beside exact arithmetic, up to and beyond the ends of the range."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from natgrad.solvers.scaling import _shifted, as_float, power_of_two, quotient, rescale, unscale

DOUBLE = torch.float64
LARGEST = torch.finfo(DOUBLE).max
UNIT = st.floats(0.5, 2.0, exclude_max=True)


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=DOUBLE)


def exact(mantissa: float, exponent: int) -> Fraction:
    power = Fraction(2**exponent) if exponent >= 0 else Fraction(1, 2**-exponent)
    return Fraction(mantissa) * power


@given(UNIT, st.integers(-1200, 1100))
def test_a_number_of_unit_size_is_shifted_as_ldexp_does(x: float, exponent: int) -> None:
    """Rounded once where it leaves the normal numbers, infinite above the range."""
    fraction, power = math.frexp(x)
    expected = math.inf if power + exponent > 1024 else math.ldexp(fraction, power + exponent)
    assert float(_shifted(scalar(x), exponent)) == expected


@pytest.mark.parametrize("exponent", [-4000, -2401, -1000, -999, 0, 999, 1000, 1023])
def test_a_shift_of_any_size_is_exact_or_leaves_the_range(exponent: int) -> None:
    for x in (1.0, -1.5):
        assert float(_shifted(scalar(x), exponent)) == math.ldexp(x, exponent)
    assert float(_shifted(scalar(-1.0), 4000)) == -math.inf


def test_a_shift_rounds_once_to_numbers_below_the_normal_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    small = (1 + torch.rand(200, generator=generator, dtype=DOUBLE)) * 2.0**-990
    expected = [math.ldexp(x, -60) for x in small.tolist()]
    assert _shifted(small, -60).tolist() == expected


@pytest.mark.parametrize("exponent", [1500, 2090])
def test_a_shift_goes_from_one_end_of_the_range_to_the_other(exponent: int) -> None:
    for x, by in ((2.0**-1074, exponent), (2.0**1023, -exponent)):
        assert float(_shifted(scalar(x), by)) == math.ldexp(x, by)


FACTORS = st.lists(st.floats(-300, 300).map(lambda power: 10.0**power), max_size=5)


@given(FACTORS, FACTORS)
def test_a_quotient_of_products_has_no_range_to_leave(
    times: list[float], over: list[float]
) -> None:
    mantissa, exponent = quotient(times, over)
    one = Fraction(1)
    expected = math.prod(map(Fraction, times), start=one) / math.prod(
        map(Fraction, over), start=one
    )
    ratio = exact(mantissa, exponent) / expected
    # One rounding for each factor above the line, two below.
    assert abs(ratio - 1) <= 12 * Fraction(torch.finfo(DOUBLE).eps)
    assert 0.5 <= mantissa < 1 or (not times and not over)


def test_a_quotient_by_zero_is_infinite_and_of_zero_is_zero() -> None:
    assert as_float(*quotient((3.0,), (0.0,))) == math.inf
    assert as_float(*quotient((0.0,), (3.0,))) == 0.0
    assert as_float(*quotient((math.inf,), (2.0,))) == math.inf


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_numbers_are_floats_and_the_next_are_infinite(sign: float) -> None:
    mantissa, exponent = math.frexp(LARGEST)
    assert exponent == 1024
    assert as_float(sign * mantissa, exponent) == sign * LARGEST
    assert as_float(sign * 0.5, 1024) == sign * 2.0**1023
    assert as_float(sign * 0.5, 1025) == sign * math.inf
    assert as_float(sign * 0.5, -1080) == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_an_answer_out_of_range_is_zero_and_told(dtype: torch.dtype) -> None:
    x = torch.tensor([1.0, -2.0, 0.0], dtype=dtype)
    one, huge, tiny = scalar(1.0), scalar(1e300), scalar(1e-300)
    for numerator, denominator in ((huge, tiny), (tiny, huge)):
        answer, kept = unscale(x, numerator, denominator)
        assert (answer.dtype, answer.tolist(), bool(kept)) == (dtype, [0.0, 0.0, 0.0], False)
    answer, kept = unscale(x, scalar(6.0), scalar(2.0))
    assert (answer.tolist(), bool(kept)) == ([3.0, -6.0, 0.0], True)
    answer, kept = unscale(x, one, scalar(2.0**-60), torch.float32)
    assert (answer.dtype, bool(kept)) == (torch.float32, True)
    assert answer.tolist() == [2.0**60, -(2.0**61), 0.0]


@given(UNIT, st.integers(-500, 500), st.integers(-1000, 1000), st.integers(-1000, 1000))
def test_rescaling_is_exact_by_powers_of_two_or_says_that_digits_were_lost(
    x: float, size: int, times: int, over: int
) -> None:
    value = math.ldexp(x, size)
    answer, kept = rescale(scalar(value), (scalar(2.0**times),), (scalar(2.0**over),))
    power = size + times - over
    if -1022 <= power <= 1022:
        assert bool(kept)
        assert Fraction(float(answer)) == exact(x, power)
    if power < -1074 or power > 1024:
        assert not bool(kept)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_the_power_of_two_is_that_of_the_largest_entry(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    for values, expected in (
        ([0.0, -5.0, 3.0], 4.0),
        ([8.0], 8.0),
        ([info.tiny * info.eps * 5], info.tiny * info.eps * 4),
        ([info.max], 2.0 ** math.floor(math.log2(info.max) - 1e-9)),
        ([0.0, 0.0], 1.0),
        ([2.0, math.inf], 1.0),
        ([2.0, math.nan], 1.0),
        ([], 1.0),
    ):
        found = power_of_two(torch.tensor(values, dtype=dtype))
        assert (float(found), found.dtype, found.ndim) == (expected, dtype, 0)
