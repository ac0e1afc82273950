"""A peer's operators: right but for what is named here, so that a repair is noticed."""

import pytest

pytest.importorskip("curvlinops")

from natgrad.testing.adapters.curvlinops import MATRICES, curvature, kronecker
from natgrad.testing.check import Kind
from natgrad.testing.conformance import parametrize_with_checks

# It still compiles its loss by TorchScript.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
UNUSED = "an error about sizes for a parameter that the outputs do not depend on"
PADDING = "forward derivatives of an embedding do not know of padding: pytorch#93950"
NORMALISED = "an error in batch normalisation in training mode, which writes to its buffers"
EXPECTED = {"O9d": NORMALISED, "O12": UNUSED, "O12d": PADDING}
GAUSS_NEWTON = curvature("GGNLinearOperator")
OTHERS = [curvature(name) for name in MATRICES if name != "GGNLinearOperator"]
SAMPLED = "curvlinops.FisherMCLinearOperator"
FAILURES = {each.name: EXPECTED for each in OTHERS} | {SAMPLED: {"O9d": NORMALISED}}
KFAC = kronecker("KFACLinearOperator")
FACTORED = [kronecker("KFACLinearOperator", exact=False), kronecker("EKFACLinearOperator")]
ZERO = {each.name: {"O12c": UNUSED} for each in (KFAC, *FACTORED)}


@parametrize_with_checks(
    [GAUSS_NEWTON], Kind.CURVATURE, expected_failures={GAUSS_NEWTON.name: EXPECTED}
)
def test_gauss_newton(subject, check):
    check(subject, examples=5)


@parametrize_with_checks([KFAC], Kind.KRONECKER, expected_failures=ZERO)
def test_kfac(subject, check):
    check(subject, examples=5)


@pytest.mark.slow
@parametrize_with_checks(OTHERS, Kind.CURVATURE, expected_failures=FAILURES)
def test_the_other_curvature(subject, check):
    check(subject, examples=5)


@pytest.mark.slow
@parametrize_with_checks(FACTORED, Kind.KRONECKER, expected_failures=ZERO)
def test_the_other_kronecker_factors(subject, check):
    check(subject, examples=5)
