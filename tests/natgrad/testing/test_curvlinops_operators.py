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
FACTORED = [
    kronecker("KFACLinearOperator"),
    kronecker("KFACLinearOperator", exact=False),
    kronecker("EKFACLinearOperator"),
]


@parametrize_with_checks(
    [curvature(name) for name in MATRICES],
    Kind.CURVATURE,
    expected_failures={
        "curvlinops.FisherMCLinearOperator": {"O9d": NORMALISED},
        **{
            f"curvlinops.{name}": {"O9d": NORMALISED, "O12": UNUSED, "O12d": PADDING}
            for name in MATRICES
            if name != "FisherMCLinearOperator"
        },
    },
)
def test_curvature(subject, check):
    check(subject, examples=5)


@parametrize_with_checks(
    FACTORED, Kind.KRONECKER, expected_failures={each.name: {"O12c": UNUSED} for each in FACTORED}
)
def test_kronecker_factors(subject, check):
    check(subject, examples=5)
