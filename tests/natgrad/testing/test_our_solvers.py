"""What natgrad ships passes the kit: solvers, steps, searches, and advantages."""

import pytest

from bench.subjects import SOLVERS
from natgrad.testing import enforce, parametrize_with_checks

READS = "scalars of the recurrence are read back one by one"
EXPECTED = {"natgrad minres": {"S18": READS}, "natgrad lanczos": {"S18": READS}}
SUBJECTS = [(subject, kind) for kind, subjects in SOLVERS.items() for subject in subjects]


def each(kind):
    return parametrize_with_checks(SOLVERS[kind], kind, expected_failures=EXPECTED)


@each("solver")
def test_solvers(subject, check):
    check(subject)


@each("trust-region-solver")
def test_trust_region_solvers(subject, check):
    check(subject, examples=10)


@each("damped-least-squares")
def test_directions_of_damped_least_squares(subject, check):
    check(subject, examples=10)


@each("line-search")
def test_line_searches(subject, check):
    check(subject, examples=10)


@each("step-size")
def test_step_size(subject, check):
    check(subject, examples=10)


@each("advantages")
def test_advantages(subject, check):
    check(subject, examples=10)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 21))
@pytest.mark.parametrize(
    ("subject", "kind"), SUBJECTS, ids=lambda given: getattr(given, "name", "")
)
def test_no_seed_accuses_them(subject, kind, seed):
    enforce(subject, kind=kind, seed=seed, expected_failures=EXPECTED.get(subject.name))
