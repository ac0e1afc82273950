"""What natgrad ships passes the kit."""

import pytest

import natgrad
from natgrad.testing import enforce, parametrize_with_checks, subject
from natgrad.testing.subjects.line_search import LineSearch
from natgrad.testing.subjects.trust_region_solver import TrustRegionSolver
from rl_plugins import gae


def gltr(A, g, radius, *, rtol):
    return natgrad.lanczos(A, -g, rtol=rtol).solve(radius=radius)


def by_lanczos(A, b, *, rtol):
    return natgrad.lanczos(A, b, rtol=rtol).solve()


def seen_by_columns(A, b, *, rtol):
    """Through its own Cholesky factor of float64, as the direct solver that it is."""
    return natgrad.cholesky(A, b, rtol=rtol)


class Rows:
    """What sample_space asks of a Jacobian."""

    def __init__(self, J):
        self.J = J

    def to_dense(self):
        return self.J @ self.J.mT

    def transpose(self, u):
        return self.J.mT @ u


def in_sample_space(J, r, damping, previous=None, momentum=0.0):
    start = 0.0 * J[0] if previous is None else momentum * previous
    return start + natgrad.sample_space(Rows(J)).solve(r - J @ start, damping=damping).x


def in_parameter_space(J, r, damping):
    return natgrad.least_squares(J).solve(r, damping=damping)


SOLVERS = [
    subject(natgrad.cg, "solver"),
    subject(natgrad.minres, "solver"),
    subject(natgrad.cholesky, "solver"),
    subject(by_lanczos, "solver", ["krylov"]),
]
TRUST_REGION_SOLVERS = [
    TrustRegionSolver.of(natgrad.steihaug, path=natgrad.SteihaugPath),
    subject(gltr, "trust-region-solver", ["exact", "krylov"]),
]
LINE_SEARCHES = [
    subject(natgrad.backtracking, "line-search"),
    LineSearch.along(natgrad.approximate_wolfe),
]
LEAST_SQUARES = [
    subject(in_sample_space, "damped-least-squares"),
    subject(in_parameter_space, "damped-least-squares"),
]
READS = "scalars of the recurrence are read back one by one"
EXPECTED = {
    "natgrad.solvers.minres.minres": {"S18": READS},
    f"{__name__}.by_lanczos": {"S18": READS},
}


@parametrize_with_checks(SOLVERS, "solver", expected_failures=EXPECTED)
def test_solvers(subject, check):
    check(subject)


@parametrize_with_checks(TRUST_REGION_SOLVERS, "trust-region-solver")
def test_trust_region_solvers(subject, check):
    check(subject)


@parametrize_with_checks(LINE_SEARCHES, "line-search")
def test_line_searches(subject, check):
    check(subject)


@parametrize_with_checks(LEAST_SQUARES, "damped-least-squares")
def test_directions_of_damped_least_squares(subject, check):
    check(subject)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 21))
@pytest.mark.parametrize(
    ("tested", "kind"),
    [
        *((solver, "solver") for solver in SOLVERS),
        *((solver, "trust-region-solver") for solver in TRUST_REGION_SOLVERS),
        *((search, "line-search") for search in LINE_SEARCHES),
        *((solver, "damped-least-squares") for solver in LEAST_SQUARES),
        (subject(natgrad.step_size, "step-size"), "step-size"),
        (subject(gae, "advantages"), "advantages"),
    ],
    ids=lambda given: getattr(given, "name", given),
)
def test_no_seed_accuses_them(tested, kind, seed):
    enforce(tested, kind=kind, seed=seed, expected_failures=EXPECTED.get(tested.name))


@parametrize_with_checks([subject(natgrad.step_size, "step-size")], "step-size")
def test_step_size(subject, check):
    check(subject)


@parametrize_with_checks([subject(gae, "advantages")], "advantages")
def test_advantages(subject, check):
    check(subject)
