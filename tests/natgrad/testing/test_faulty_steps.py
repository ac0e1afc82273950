"""Trust-region solvers, step sizes, line searches, directions and advantages with one fault each,
which the kit must name, and correct ones, which it may not accuse."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from natgrad.testing import Answer, Outcome, checks_for, examine
from natgrad.testing.subjects.advantages import AdvantageEstimator
from natgrad.testing.subjects.damped_least_squares import DampedLeastSquares
from natgrad.testing.subjects.line_search import LineSearch
from natgrad.testing.subjects.step_size import StepSizeRule
from natgrad.testing.subjects.trust_region_solver import TrustRegionSolver


class Steihaug:
    """Truncated conjugate gradients, correct: CGT's algorithm 7.5.1 on a model of unit scale."""

    def __call__(self, A, g, radius, *, rtol, max_iterations=None, preconditioner=None):
        self.P = None if preconditioner is None else torch.linalg.inv(preconditioner)
        s, r = torch.zeros_like(g), g
        if not bool(g.any()):
            return Answer(s, True)
        z = r if preconditioner is None else preconditioner @ r
        p = -z
        for _ in range(10 * len(g) if max_iterations is None else max_iterations):
            Ap = A @ p
            curvature = p @ Ap
            if not bool(torch.isfinite(Ap).all()):
                return Answer(s, False)
            if self.turns(curvature, p, Ap):
                return Answer(s + self.to_boundary(s, p, radius) * p, False, "NEGATIVE")
            alpha = (r @ z) / curvature
            if self.length(s + alpha * p) >= radius:
                return Answer(s + self.to_boundary(s, p, radius) * p, False, "BOUNDARY")
            s, old = s + alpha * p, r @ z
            r = r + alpha * Ap
            if bool(r.double().norm() <= rtol * g.double().norm()):
                true = g.double() + A.matrix.double() @ s.double()
                return Answer(s, bool(true.norm() <= rtol * g.double().norm()))
            z = r if preconditioner is None else preconditioner @ r
            p = -z + (r @ z) / old * p
        return Answer(s, False)

    def turns(self, curvature, p, Ap):
        return bool(curvature <= torch.finfo(p.dtype).eps * p.norm() * Ap.norm())

    def length(self, s):
        return (s @ s if self.P is None else s @ (self.P @ s)).double().sqrt()

    def to_boundary(self, s, p, radius):
        Ps, Pp = (s, p) if self.P is None else (self.P @ s, self.P @ p)
        ss, sp, pp = s @ Ps, s @ Pp, p @ Pp
        root = (sp * sp + pp * (radius * radius - ss)).clamp_min(0).sqrt()
        # Without cancellation; a hair inside, for rounding.
        inside = 1 - 4 * torch.finfo(s.dtype).eps
        return inside * ((radius * radius - ss) / (sp + root) if sp > 0 else (root - sp) / pp)


class OtherNormAtTheBoundary(Steihaug):
    def to_boundary(self, s, p, radius):
        kept, self.P = self.P, None
        found = super().to_boundary(s, p, radius)
        self.P = kept
        return found


class PastTheBoundary(Steihaug):
    def length(self, s):
        return torch.zeros(())


class OtherRoot(Steihaug):
    def to_boundary(self, s, p, radius):
        return -super().to_boundary(-s, p, radius)


class IgnoresNegativeCurvature(Steihaug):
    def turns(self, curvature, p, Ap):
        return False


class StopsAtNegativeCurvature(Steihaug):
    def to_boundary(self, s, p, radius):
        return 0.0 * super().to_boundary(s, p, radius)


class AbsoluteCurvature(Steihaug):
    def turns(self, curvature, p, Ap):
        return bool(curvature <= 1e-10)


class GradientForTheStep(Steihaug):
    """The full radius along −g, whatever the curvature."""

    def __call__(self, A, g, radius, *, rtol, max_iterations=None, preconditioner=None):
        return Answer(-g / g.norm().clamp_min(1e-300) * radius, False)


class NeverAtRest(Steihaug):
    def __call__(self, A, g, radius, **given):
        found = super().__call__(A, g, radius, **given)
        return found if bool(found.x.any()) else Answer(torch.full_like(g, 1e-3 * radius), True)


class NanGoesThrough(Steihaug):
    def __call__(self, A, g, radius, **given):
        found = super().__call__(A, g, radius, **given)
        return found if A.nan_from is None else Answer(found.x * math.nan, False)


class AscendsTheModel(Steihaug):
    def __call__(self, A, g, radius, **given):
        found = super().__call__(A, g, radius, **given)
        return replace(found, x=-found.x)


class KeptPath:
    """Goes on from where the last radius ended, without going back."""

    def __init__(self, A, g):
        self.A, self.g, self.last = A, g, None

    def solve(self, radius):
        if self.last is None:
            self.last = Steihaug()(self.A, self.g, radius, rtol=1e-8).x
        return SimpleNamespace(x=self.last)


class Rescaled(KeptPath):
    def solve(self, radius):
        s = super().solve(radius).x
        return SimpleNamespace(x=s * min(1.0, radius / float(s.norm())))


TRUST_REGION = {
    OtherNormAtTheBoundary: {"T1b"},
    PastTheBoundary: {"T1"},
    OtherRoot: {"T2"},
    IgnoresNegativeCurvature: {"T7"},
    StopsAtNegativeCurvature: {"T7"},
    AbsoluteCurvature: {"T11"},
    GradientForTheStep: {"T4"},
    AscendsTheModel: {"T2"},
    NeverAtRest: {"T9"},
    NanGoesThrough: {"T12"},
}


@pytest.mark.parametrize("fault", TRUST_REGION, ids=lambda fault: fault.__name__)
def test_a_faulty_trust_region_solver_is_caught(fault):
    subject = TrustRegionSolver(fault.__name__, fault(), OFFERS)
    assert_caught(subject, "trust-region-solver", TRUST_REGION[fault])


@pytest.mark.parametrize("path", [KeptPath, Rescaled])
def test_a_path_that_does_not_go_back_is_caught(path):
    subject = TrustRegionSolver(path.__name__, Steihaug(), OFFERS | {"path"}, path)
    assert_caught(subject, "trust-region-solver", {"T10"})


OFFERS = frozenset({"krylov", "max_iterations", "preconditioner"})


def dense(A, g, radius, *, rtol):
    """The minimiser by eigenvalues and bisection."""
    values, vectors = torch.linalg.eigh(A.matrix.double())
    c = vectors.mT @ g.double()

    def step(shift):
        return torch.where(values + shift > 0, -c / (values + shift), 0.0)

    def answer(s, inside):
        return Answer((vectors @ s).to(g.dtype), inside)

    if bool(values[0] > 0) and bool(step(0.0).norm() <= radius):
        s = step(0.0)
        x = (vectors @ s).to(g.dtype).double()
        residual = A.matrix.double() @ x + g.double()
        return answer(s, bool(residual.norm() <= rtol * g.double().norm()))
    low = max(0.0, -float(values[0]))
    high = low + float(c.norm()) / radius + 1e-12 * float(values.abs().max())
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if bool(step(middle).norm() > radius) else (low, middle)
    s = step(high)
    missing = max(radius**2 - float(s @ s), 0.0)
    s[0] += math.copysign(math.sqrt(missing + float(s[0]) ** 2), float(s[0])) - float(s[0])
    return answer(s / max(1.0, float(s.norm()) / radius), False)


class OnlyTheKrylovSpace:
    """Misses the hard case: what g does not excite is not seen."""

    def __call__(self, A, g, radius, *, rtol):
        return Steihaug()(A, g, radius, rtol=rtol)


def test_an_exact_solver_without_the_hard_case_is_caught():
    subject = TrustRegionSolver("krylov", OnlyTheKrylovSpace(), frozenset({"exact"}))
    assert_caught(subject, "trust-region-solver", {"T3", "T8", "T9b"})


# --- step sizes


def step_size(sKs, delta):
    sound = sKs > 0 and math.isfinite(sKs)
    return math.sqrt(2 * delta) / math.sqrt(sKs) if sound else 0.0


STEP_SIZES = {
    "without the factor 2": lambda sKs, delta: math.sqrt(delta) / step_size(1 / sKs, 0.5),
    "delta for its root": lambda sKs, delta: delta * step_size(sKs, 0.5),
    "epsilon in the denominator": lambda sKs, delta: step_size(sKs + 1e-8, delta),
    "an absolute value": lambda sKs, delta: step_size(abs(sKs), delta),
    "NaN goes through": lambda sKs, delta: step_size(sKs, delta) if sKs == sKs else math.nan,
    "underflow": lambda sKs, delta: (
        math.sqrt(2 * delta / max(sKs * sKs, 5e-324) * sKs)
        if sKs > 0 and math.isfinite(sKs)
        else 0.0
    ),
}


@pytest.mark.parametrize("fault", STEP_SIZES)
def test_a_faulty_step_size_is_caught(fault):
    subject = StepSizeRule(fault, STEP_SIZES[fault])
    assert failed(subject, "step-size")


# --- line searches


class Backtracking:
    """Armijo's rule, correct."""

    def __call__(
        self, evaluate, start, step, *, expected_improvement, accept_ratio, bound=0.0
    ):  # fmt: skip
        self.calls = 0
        base = float(evaluate(start)[0])
        self.calls += 1
        for fraction in (0.5**j for j in range(30)):
            theta = self.candidate(start, fraction, step)
            objective, constraint = map(float, evaluate(theta))
            self.calls += 1
            wanted = accept_ratio * fraction * expected_improvement
            if self.takes(base - objective, wanted, constraint, bound):
                return self.found(theta, True)
        return self.found(self.refused(start, theta), False)

    def candidate(self, start, fraction, step):
        return start + fraction * step

    def takes(self, improvement, wanted, constraint, bound):
        return math.isfinite(improvement) and 0 < improvement >= wanted and constraint <= bound

    def refused(self, start, theta):
        return start

    def found(self, theta, accepted):
        return SimpleNamespace(theta=theta, accepted=accepted, evaluations=self.calls)


class AcceptsNan(Backtracking):
    def takes(self, improvement, wanted, constraint, bound):
        return not improvement < wanted and not constraint > bound


class AcceptsInfinity(Backtracking):
    def takes(self, improvement, wanted, constraint, bound):
        return improvement > 0 and improvement >= wanted and constraint <= bound


class AcceptsEverything(Backtracking):
    def takes(self, improvement, wanted, constraint, bound):
        return True


class NoExpectation(Backtracking):
    """Any fall will do, where a share of the expected one is promised."""

    def takes(self, improvement, wanted, constraint, bound):
        return math.isfinite(improvement) and improvement > 0 and constraint <= bound


class DoesNotRestore(Backtracking):
    def refused(self, start, theta):
        return theta


class WritesToTheStart(Backtracking):
    def candidate(self, start, fraction, step):
        return start.add_(fraction * step)


class AbsoluteDecrease(Backtracking):
    def takes(self, improvement, wanted, constraint, bound):
        return improvement > 1e-8 and super().takes(improvement, wanted, constraint, bound)


class IgnoresTheConstraint(Backtracking):
    def takes(self, improvement, wanted, constraint, bound):
        return super().takes(improvement, wanted, 0.0, 0.0)


class NanConstraint(Backtracking):
    def takes(self, improvement, wanted, constraint, bound):
        return math.isfinite(improvement) and 0 < improvement >= wanted and not constraint > bound


class ForgetsTheFirstCall(Backtracking):
    def found(self, theta, accepted):
        self.calls -= 1
        return super().found(theta, accepted)


class NoBound(Backtracking):
    def __call__(self, evaluate, start, step, **given):
        for _ in range(200):
            found = super().__call__(evaluate, start, step, **given)
            if found.accepted:
                break
        return found


class OneTry(Backtracking):
    """The whole step or nothing."""

    def candidate(self, start, fraction, step):
        return start + step


LINE_SEARCHES = {
    AcceptsNan: {"L2", "L2b"},
    AcceptsInfinity: {"L2"},
    AcceptsEverything: {"L1", "L4", "L6"},
    NoExpectation: {"L1"},
    DoesNotRestore: {"L2b", "L3", "L4"},
    WritesToTheStart: {"L3"},
    AbsoluteDecrease: {"L7"},
    IgnoresTheConstraint: {"L9"},
    NanConstraint: {"L9"},
    ForgetsTheFirstCall: {"L8"},
    NoBound: {"L5"},
    OneTry: {"L1b"},
}


@pytest.mark.parametrize("fault", LINE_SEARCHES, ids=lambda fault: fault.__name__)
def test_a_faulty_line_search_is_caught(fault):
    assert_caught(line_search(fault), "line-search", LINE_SEARCHES[fault])


def short_steps(evaluate, *, initial, value, slope):
    """Sufficient decrease alone, which any step short enough has."""
    alpha = 1e-4 * initial
    return SimpleNamespace(alpha=alpha, accepted=evaluate(alpha)[0] < value, evaluations=1)


def test_a_search_for_decrease_alone_is_no_wolfe_search():
    assert_caught(LineSearch.along(short_steps), "line-search", {"L1c"})


def line_search(make):
    return replace(LineSearch.of(make().__call__), name=make.__name__)


# --- directions of damped least squares


def primal(J, r, damping, previous=None, momentum=0.0):
    normal = J.mT @ J + damping * torch.eye(J.shape[1], dtype=J.dtype)
    pull = 0.0 if previous is None else damping * momentum * previous
    return torch.linalg.solve(normal, J.mT @ r + pull)


def dual(J, r, damping, previous=None, momentum=0.0):
    start = torch.zeros_like(J[0]) if previous is None else momentum * previous
    gram = J @ J.mT + damping * torch.eye(len(J), dtype=J.dtype)
    return start + J.mT @ torch.linalg.solve(gram, r - J @ start)


def without_correction(J, r, damping, previous=None, momentum=0.0):
    """Momentum added to the step, its effect on the residuals forgotten."""
    return dual(J, r, damping) + (0.0 if previous is None else momentum * previous)


def always_momentum(J, r, damping, previous=None, momentum=0.0):
    return dual(J, r, damping, previous, 0.5)


DIRECTIONS = {
    "no damping": (lambda J, r, damping: primal(J, r, 1e-12), {"N4", "N7"}),
    "half the damping": (lambda J, r, damping: primal(J, r, damping / 2), {"N4", "N7"}),
    "damping on the diagonal twice": (
        lambda J, r, damping: dual(J, r, 2 * damping),
        {"N4", "N7"},
    ),
    "wrong sign": (lambda J, r, damping: -primal(J, r, damping), {"N4", "N7", "N7b"}),
    "the square of lambda": (lambda J, r, damping: primal(J, r, damping**2), {"N4"}),
    "uncorrected momentum": (without_correction, {"N5b", "N5c"}),
    "momentum that is not asked for": (always_momentum, {"N5"}),
}


@pytest.mark.parametrize("fault", DIRECTIONS)
def test_a_faulty_direction_is_caught(fault):
    function, expected = DIRECTIONS[fault]
    assert_caught(DampedLeastSquares.of(function), "damped-least-squares", expected)


# --- advantages


def advantages(
    rewards, values, next_values, terminated, truncated, *, discount, decay,
    bootstraps=lambda terminated, truncated: ~terminated,
    ends=lambda terminated, truncated: terminated | truncated,
    factor=lambda discount, decay: discount * decay,
):  # fmt: skip
    delta = rewards - values
    delta = delta + discount * next_values.where(bootstraps(terminated, truncated), 0.0)
    going, carried, found = ~ends(terminated, truncated), torch.zeros_like(values[0]), []
    for t in reversed(range(len(rewards))):
        carried = delta[t] + factor(discount, decay) * carried * going[t]
        found.append(carried)
    return torch.stack(found[::-1])


def following_step(rewards, values, next_values, terminated, truncated, **given):
    """V of the next row, which after an end is the next episode's."""
    shifted = torch.cat([values[1:], next_values[-1:]])
    return advantages(rewards, values, shifted, terminated, truncated, **given)


def multiplied(rewards, values, next_values, terminated, truncated, **given):
    """NaN times 0 is NaN."""
    masked = next_values * ~terminated
    return advantages(rewards, values, masked, terminated, truncated, **given, bootstraps=always)


def always(terminated, truncated):
    return torch.ones_like(terminated)


ADVANTAGES = {
    "truncation as termination": (
        {"bootstraps": lambda terminated, truncated: ~(terminated | truncated)}, {"G3", "G4"}
    ),
    "termination as truncation": ({"bootstraps": always}, {"G4"}),
    "leaks over truncation": (
        {"ends": lambda terminated, truncated: terminated}, {"G1", "G3"}
    ),
    "leaks over every end": (
        {"ends": lambda terminated, truncated: torch.zeros_like(terminated)}, {"G1", "G5"}
    ),
    "decay without discount": ({"factor": lambda discount, decay: decay}, {"G1", "G3"}),
    "discount without decay": ({"factor": lambda discount, decay: discount}, {"G1", "G2"}),
}  # fmt: skip


@pytest.mark.parametrize("fault", ADVANTAGES)
def test_a_faulty_estimate_of_advantages_is_caught(fault):
    given, expected = ADVANTAGES[fault]

    def call(*tensors, discount, decay):
        return advantages(*tensors, discount=discount, decay=decay, **given)

    assert_caught(AdvantageEstimator(fault, call), "advantages", expected)


@pytest.mark.parametrize(
    ("function", "expected"), [(following_step, {"G1", "G2", "G3"}), (multiplied, {"G4"})]
)
def test_a_faulty_bootstrap_is_caught(function, expected):
    assert_caught(AdvantageEstimator.of(function), "advantages", expected)


# --- what is correct

CORRECT = {
    "Steihaug": (TrustRegionSolver("Steihaug", Steihaug(), OFFERS), "trust-region-solver"),
    "dense": (TrustRegionSolver("dense", dense, frozenset({"exact"})), "trust-region-solver"),
    "step size": (StepSizeRule.of(step_size), "step-size"),
    "backtracking": (line_search(Backtracking), "line-search"),
    "primal": (DampedLeastSquares.of(primal), "damped-least-squares"),
    "dual": (DampedLeastSquares.of(dual), "damped-least-squares"),
    "advantages": (
        AdvantageEstimator.of(lambda *tensors, discount, decay: advantages(
            *tensors, discount=discount, decay=decay
        )),
        "advantages",
    ),
}  # fmt: skip
SLOW = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 21)]


@pytest.mark.parametrize("name", CORRECT)
@pytest.mark.parametrize("seed", [None, *SLOW])
def test_what_is_correct_is_not_accused(name, seed):
    subject, kind = CORRECT[name]
    assert failed(subject, kind, seed=seed) == {}


def failed(subject, kind, seed=None):
    return {
        verdict.check.identifier: (verdict.counterexample, verdict.reason)
        for verdict in examine(subject, kind, seed=seed, examples=10)
        if verdict.outcome is Outcome.FAILED
    }


def assert_caught(subject, kind, expected):
    caught = {
        check.identifier
        for check in checks_for(kind)
        if check.identifier in expected and check.examine(subject).outcome is Outcome.FAILED
    }
    assert caught == expected
