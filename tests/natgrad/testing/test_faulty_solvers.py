"""Solvers with one fault each, which the kit must name, and correct ones, which it may not accuse.

The faults are those that were met in the field, put one by one into textbook conjugate gradients.
"""

import math

import pytest
import torch
from torch import Tensor

from natgrad.testing import Answer, Outcome, checks_for, examine
from natgrad.testing.subjects.solver import Solver

TRAITS = frozenset(
    {"device", "krylov", "least error", "direction", "x0", "preconditioner", "max_iterations"}
)  # what textbook conjugate gradients offer
ENERGY = {"least error", "direction"}


class ConjugateGradients:
    """Correct: b is scaled by a power of two, claims are verified, breakdowns are told."""

    verifies = True

    def __call__(self, A, b, *, rtol, max_iterations=None, x0=None, preconditioner=None):
        self.A, self.b, self.rtol = A, b, rtol
        x = torch.zeros_like(b) if x0 is None else self.start(x0)
        if not bool(torch.isfinite(b).all()):
            return self.answer(x, 0, False)
        if not bool(b.any()):
            return self.answer(x, 0, True)
        r = b - A @ x if bool(x.any()) else b
        if self.small(r):
            return self.answer(x, 0, True, r)
        z = self.precondition(preconditioner, r)
        p = z
        for iteration in range(1, self.limit(max_iterations) + 1):
            Ap = A @ p
            curvature = p @ Ap
            if not self.sound(p, Ap, curvature):
                finite = bool(torch.isfinite(curvature))
                return self.answer(x, iteration, False, r, p if finite else None)
            step = self.step(r, z, p, curvature)
            x, r, old = x + step * p, r - step * Ap, r @ z
            if self.small(r):
                # In float64: float32 cannot tell its own last digits.
                true = b.double() - A.matrix.double() @ x.double() if self.verifies else r
                return self.answer(x, iteration, self.small(true), true.to(b.dtype))
            z = self.precondition(preconditioner, r)
            p = z + self.conjugation(r, z, old) * p
        return self.answer(x, iteration if max_iterations != 0 else 0, False, r)

    def start(self, x0):
        return x0.clone()

    def limit(self, max_iterations):
        return 10 * len(self.b) if max_iterations is None else max_iterations

    def small(self, r):
        return bool(r.double().norm() <= self.rtol * self.b.double().norm())

    def sound(self, p, Ap, curvature):
        eps = torch.finfo(p.dtype).eps
        return bool(curvature > eps * p.norm() * Ap.norm()) and bool(torch.isfinite(Ap).all())

    def precondition(self, P, r):
        return r if P is None else P @ r

    def step(self, r, z, p, curvature):
        return (r @ z) / curvature

    def conjugation(self, r, z, old):
        return (r @ z) / old

    def answer(self, x, iterations, solved, r=None, direction=None):
        Ax = None if r is None else self.b - r
        return Answer(x, solved, "", iterations, None, Ax, direction)


class AbsoluteTolerance(ConjugateGradients):
    def small(self, r):
        return bool(r @ r <= 1e-10)


class AbsoluteCurvature(ConjugateGradients):
    def sound(self, p, Ap, curvature):
        return bool(curvature > 1e-10)


class BelievesTheRecurrence(ConjugateGradients):
    verifies = False


class ClaimsWithoutLooking(ConjugateGradients):
    def answer(self, x, iterations, solved, r=None, direction=None):
        return super().answer(x, iterations, True, r, direction)


class NeverClaims(ConjugateGradients):
    def answer(self, x, iterations, solved, r=None, direction=None):
        return super().answer(x, iterations, False, r, direction)


class AcceptsNan(ConjugateGradients):
    def sound(self, p, Ap, curvature):
        return not bool(curvature <= 0)  # false for NaN, as every comparison is


class HidesNegativeCurvature(ConjugateGradients):
    def answer(self, x, iterations, solved, r=None, direction=None):
        return super().answer(x, iterations, solved, r)


class WrongSignOfConjugation(ConjugateGradients):
    def conjugation(self, r, z, old):
        return -(r @ z) / old


class SteepestDescent(ConjugateGradients):
    def conjugation(self, r, z, old):
        return 0.0


class InverseConjugation(ConjugateGradients):
    def conjugation(self, r, z, old):
        return old / (r @ z)


class ResidualsInTheFirstStep(ConjugateGradients):
    """rᵀr where rᵀz belongs: right without a preconditioner."""

    def step(self, r, z, p, curvature):
        return (r @ r) / curvature


class StalePreconditioner(ConjugateGradients):
    """z of the first residual only."""

    def precondition(self, P, r):
        if P is None:
            return r
        if r is self.b:
            self.kept = P @ r
        return self.kept if r is self.b or not hasattr(self, "kept") else 0.5 * (P @ r + self.kept)


class EpsilonInTheDenominator(ConjugateGradients):
    def step(self, r, z, p, curvature):
        return (r @ z) / (curvature + 1e-8)


class IgnoresTheStart(ConjugateGradients):
    def start(self, x0):
        return torch.zeros_like(x0)


class WritesToTheStart(ConjugateGradients):
    def start(self, x0):
        return x0.mul_(1.0)

    def __call__(self, A, b, *, x0=None, **given):
        answer = super().__call__(A, b, x0=x0, **given)
        if x0 is not None:
            x0.copy_(answer.x)
        return answer


class IgnoresTheLimit(ConjugateGradients):
    def limit(self, max_iterations):
        return 10 * len(self.b)


class OneIterationMore(ConjugateGradients):
    def limit(self, max_iterations):
        return super().limit(max_iterations) + 1


class ResidualForTheProduct(ConjugateGradients):
    """b + r for A x."""

    def answer(self, x, iterations, solved, r=None, direction=None):
        found = super().answer(x, iterations, solved, r, direction)
        Ax = None if r is None else self.b + r
        return Answer(found.x, found.solved, "", found.iterations, None, Ax, direction)


class WrongDirection(ConjugateGradients):
    """A direction of positive curvature."""

    def answer(self, x, iterations, solved, r=None, direction=None):
        shown = None if direction is None else torch.linalg.eigh(self.A.matrix)[1][:, -1]
        return super().answer(x, iterations, solved, r, shown)


class ProductsForTheModel(ConjugateGradients):
    """One more product an iteration, for the model's value."""

    def step(self, r, z, p, curvature):
        self.A @ p
        return super().step(r, z, p, curvature)


class RandomStart(ConjugateGradients):
    def __call__(self, A, b, *, x0=None, **given):
        return super().__call__(A, b, x0=1e-4 * torch.randn_like(b) if x0 is None else x0, **given)


class HalfPrecision(ConjugateGradients):
    """Everything in float32."""

    def __call__(self, A, b, **given):
        found = super().__call__(_Single(A), b.float(), **{
            name: value.float() if isinstance(value, Tensor) else value
            for name, value in given.items()
        })  # fmt: skip
        return Answer(found.x.to(b.dtype), found.solved, "", found.iterations)


class _Single:
    def __init__(self, A):
        self.A, self.matrix = A, A.matrix

    def __matmul__(self, v):
        return (self.A @ v.to(self.A.dtype)).float()


class ColumnsMixedUp(ConjugateGradients):
    def __call__(self, A, b, **given):
        if b.ndim == 1:
            return super().__call__(A, b, **given)
        found = [super(ColumnsMixedUp, self).__call__(A, column, **given) for column in b.mT]
        x = torch.stack([answer.x for answer in reversed(found)], dim=1)
        return Answer(x, all(answer.solved for answer in found))


class StepsTooLong(ConjugateGradients):
    def step(self, r, z, p, curvature):
        return 2.5 * super().step(r, z, p, curvature)


class ReadsBack(ConjugateGradients):
    """Every intermediate result as a number, for a log that nobody reads."""

    def conjugation(self, r, z, old):
        for value in (r, z, r, z, r):
            float(value.norm())
        return super().conjugation(r, z, old)


class OfTheDiagonal(ConjugateGradients):
    """Right for diagonal matrices, and claims to be for all."""

    def __call__(self, A, b, **given):
        return Answer(b / A.matrix.diagonal(), True)


class CallsItselfMinres(ConjugateGradients):
    """Its residual need not fall, and negative curvature ends it."""


FAULTS: dict[type, set[str]] = {
    AbsoluteTolerance: {"S4", "S5", "S5b"},
    AbsoluteCurvature: {"S5", "S5b"},
    BelievesTheRecurrence: {"S4"},
    ClaimsWithoutLooking: {"S4", "S10", "S12", "S15"},
    NeverClaims: {"S4b", "S5b"},
    AcceptsNan: {"S10"},
    HidesNegativeCurvature: {"S12b"},
    WrongSignOfConjugation: {"S1", "S4b"},
    SteepestDescent: {"S1", "S3"},
    InverseConjugation: {"S1", "S4b"},
    ResidualsInTheFirstStep: {"S7", "S7b", "S7c"},
    StalePreconditioner: {"S7c"},
    EpsilonInTheDenominator: {"S5", "S5b"},
    IgnoresTheStart: {"S8"},
    WritesToTheStart: {"S8b"},
    IgnoresTheLimit: {"S15"},
    OneIterationMore: {"S15"},
    ResidualForTheProduct: {"S14"},
    WrongDirection: {"S12b"},
    ProductsForTheModel: {"S11"},
    RandomStart: {"S19"},
    HalfPrecision: {"S4b"},
    ColumnsMixedUp: {"S16"},
    StepsTooLong: {"S2", "S4b"},
    ReadsBack: {"S18"},
    OfTheDiagonal: {"S4", "S6"},
    CallsItselfMinres: {"S2b", "S4c"},
}


def textbook(make: type) -> Solver:
    if make is CallsItselfMinres:
        return Solver(make.__name__, make(), TRAITS - ENERGY | {"indefinite", "least residual"})
    traits = TRAITS | ({"columns"} if make is ColumnsMixedUp else set())
    return Solver(make.__name__, make(), traits)


def dense(A, b, *, rtol):
    """A direct solve, which judges itself by the residual in float64."""
    matrix = A.matrix
    x = torch.linalg.solve(matrix, b)
    residual = b.double() - matrix.double() @ x.double()
    return Answer(x, bool(residual.norm() <= rtol * b.double().norm()))


class SaysLess(ConjugateGradients):
    """Correct, and tells x and its claim alone."""

    def answer(self, x, iterations, solved, r=None, direction=None):
        return Answer(x, solved)


CORRECT = {
    "textbook": lambda: textbook(ConjugateGradients),
    "says less": lambda: Solver("SaysLess", SaysLess(), TRAITS - {"direction"}),
    "dense": lambda: Solver.of(dense),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_caught_by_what_it_breaks(fault):
    subject = textbook(fault)
    caught = {
        check.identifier
        for check in checks_for("solver")
        if check.identifier in FAULTS[fault] and check.examine(subject).outcome is Outcome.FAILED
    }
    assert caught == FAULTS[fault]


@pytest.mark.parametrize("name", CORRECT)
@pytest.mark.parametrize(
    "seed", [None, *(pytest.param(s, marks=pytest.mark.slow) for s in range(1, 21))]
)
def test_what_is_correct_is_not_accused(name, seed):
    failed = [
        (verdict.check.identifier, verdict.counterexample, verdict.reason)
        for verdict in examine(CORRECT[name](), "solver", seed=seed, examples=10)
        if verdict.outcome is Outcome.FAILED
    ]
    assert failed == []


def test_a_counterexample_is_small():
    """Shrunk to two unknowns or fewer, and unit scale but for what matters."""
    (check,) = (check for check in checks_for("solver") if check.identifier == "S5b")
    arguments = check.examine(textbook(AbsoluteTolerance)).arguments
    assert len(arguments["system"]) == 1
    assert arguments["A_digits"] == 0
    assert math.isclose(arguments["system"].b_scale, 1.0)
