import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from natgrad.trust_region import StepSizeStatus, step_size


@given(st.floats(-300, 300), st.floats(-8, 2))
def test_half_the_quadratic_form_of_the_scaled_step_is_delta(log_sKs, log_delta):
    """Theory, line 7, to rounding, at any scale of K and s."""
    sKs, delta = 10.0**log_sKs, 10.0**log_delta
    alpha, status = step_size(sKs, delta)
    assert status is StepSizeStatus.OK
    assert math.isclose(0.5 * (alpha * math.sqrt(sKs)) ** 2, delta, rel_tol=1e-14)


@pytest.mark.parametrize("sKs", [0.0, -0.0, -1e-30, -5.0])
def test_nonpositive_curvature_gives_no_step(sKs):
    for value in (sKs, torch.tensor(sKs)):
        alpha, status = step_size(value, 0.01)
        assert status is StepSizeStatus.NONPOSITIVE_CURVATURE
        assert alpha == 0


@pytest.mark.parametrize("sKs", [math.nan, math.inf, -math.inf])
def test_nonfinite_curvature_gives_no_step(sKs):
    for value in (sKs, torch.tensor(sKs)):
        alpha, status = step_size(value, 0.01)
        assert status is StepSizeStatus.NONFINITE
        assert alpha == 0


def test_a_length_beyond_all_numbers_is_no_step():
    assert step_size(5e-324, 1e308) == (0.0, StepSizeStatus.NONFINITE)
    assert step_size(5e-324, 1.0).status is StepSizeStatus.OK


def test_a_tensor_gives_a_tensor_in_float64():
    alpha, _ = step_size(torch.tensor(8.0), 0.01)
    assert isinstance(alpha, torch.Tensor)
    assert alpha.dtype == torch.float64
    assert math.isclose(float(alpha), 0.05, rel_tol=1e-15)


def test_a_number_gives_a_number():
    assert type(step_size(8.0, 0.01).alpha) is float
    assert type(step_size(0.0, 0.01).alpha) is float


@pytest.mark.parametrize("delta", [0.0, -0.01, math.nan, math.inf])
def test_a_bound_that_is_none_is_refused(delta):
    with pytest.raises(ValueError, match="delta must be positive and finite"):
        step_size(1.0, delta)


def test_a_vector_is_refused():
    with pytest.raises(ValueError, match="scalar"):
        step_size(torch.ones(2), 0.01)
