"""A check: one sentence of mathematics, the cases it is tried on, and a verdict on any subject."""

from __future__ import annotations

import dataclasses
import inspect
import time
import unittest
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import hypothesis
import torch
from hypothesis import strategies as st

EXAMPLES = 25
# Attempts at a smaller counterexample; the smallest found stands. Fewer where examples are fewer.
SHRINKS = 150
Cases = st.SearchStrategy[Any] | Callable[[Any], st.SearchStrategy[Any]]


class Kind(Enum):
    """What a subject is; the value is its name on the command line."""

    OPERATOR = "operator"
    CURVATURE = "curvature"
    KRONECKER = "kronecker"
    SOLVER = "solver"
    DAMPED_LEAST_SQUARES = "damped-least-squares"
    TRUST_REGION_SOLVER = "trust-region-solver"
    STEP_SIZE = "step-size"
    LINE_SEARCH = "line-search"
    OPTIMIZER = "optimizer"
    MINIMISER = "minimiser"
    ADVANTAGES = "advantages"


class Outcome(Enum):
    """How a check ended on a subject."""

    PASSED = "held on every case tried"
    FAILED = "a case was found where it does not hold"
    NOT_APPLICABLE = "the subject does not offer, or does not tell, what the check is about"


class NotApplicable(unittest.SkipTest):
    """Raised inside a check whose subject does not tell what it is about; a skip to pytest."""


class CheckFailed(AssertionError):
    """A counterexample: ``arguments`` are the smallest found, ``reason`` what went wrong there."""

    def __init__(self, check: Check, subject: str, arguments: dict[str, Any], reason: str) -> None:
        self.check, self.arguments, self.reason = check, arguments, reason
        super().__init__(
            f"{check.identifier} {check.name}: {check.statement}.\n"
            f"{subject} breaks it at {shown(arguments)}\n{reason}"
        )


@dataclass(frozen=True)
class Verdict:
    """The outcome of a check on a subject; ``counterexample`` and ``reason`` where it failed,
    ``reason`` alone where it does not apply."""

    check: Check
    outcome: Outcome
    counterexample: str = ""
    reason: str = ""
    seconds: float = 0.0
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """``body(subject, **case)`` asserts; ``cases`` are Hypothesis strategies, by argument, or
    functions of the subject that give one: what a subject supports may bound what it is tried on.

    ``statement`` is the mathematics, ``tolerance`` where its slack comes from, ``found`` what it
    found in the field, ``needs`` what a subject must offer for the check to apply. ``identifier``
    is that of the list in the documentation, with a letter where an entry is several checks.
    """

    identifier: str
    kind: Kind
    statement: str
    tolerance: str
    found: tuple[str, ...]
    needs: frozenset[str]
    cases: dict[str, Cases]
    body: Callable[..., None]
    cost: float = 1.0

    @property
    def name(self) -> str:
        return self.body.__name__

    def __str__(self) -> str:
        return f"{self.identifier}_{self.name}"

    def __call__(self, subject: Any, *, seed: int | None = None, examples: int = EXAMPLES) -> None:
        """Raise :class:`CheckFailed` with the smallest counterexample found, if there is one.

        Without a ``seed`` the cases are the same in every run. Raises :class:`NotApplicable` where
        the subject lacks what the check needs.
        """
        missing = self.needs - subject.offers
        if missing:
            raise NotApplicable(f"{subject.name} does not offer {', '.join(sorted(missing))}")
        cases = {
            name: given if isinstance(given, st.SearchStrategy) else given(subject)
            for name, given in self.cases.items()
        }
        failed: dict[str, Any] = {}
        breaking: set[str] = set()
        attempts_left = round(SHRINKS / self.cost * min(1.0, examples / EXAMPLES))

        def attempt(**arguments: Any) -> None:
            nonlocal attempts_left
            if breaking and shown(arguments) not in breaking:
                attempts_left -= 1
                if attempts_left < 0:
                    return
            # A subject that draws from the global generator, as some peers do, must not flake.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                try:
                    self.body(subject, **arguments)
                except unittest.SkipTest:
                    raise
                except Exception:
                    failed.update(arguments)
                    breaking.add(shown(arguments))
                    raise

        count = max(1, round(examples / self.cost))
        try:
            _searched(attempt, cases, seed, count)()
        except unittest.SkipTest as error:
            raise NotApplicable(str(error)) from None
        except Exception as error:
            reason = str(error).strip() or _asserted(error)
            if not isinstance(error, AssertionError):
                reason = f"{type(error).__name__}: {reason}"
            raise CheckFailed(self, subject.name, failed, reason) from error

    def examine(
        self, subject: Any, *, seed: int | None = None, examples: int = EXAMPLES
    ) -> Verdict:
        """The same as a :class:`Verdict`, which never raises."""
        began = time.perf_counter()
        verdict = Verdict(self, Outcome.PASSED)
        try:
            self(subject, seed=seed, examples=examples)
        except NotApplicable as skipped:
            verdict = Verdict(self, Outcome.NOT_APPLICABLE, reason=str(skipped))
        except CheckFailed as error:
            verdict = Verdict(
                self,
                Outcome.FAILED,
                shown(error.arguments),
                error.reason,
                arguments=error.arguments,
            )
        return dataclasses.replace(verdict, seconds=time.perf_counter() - began)


def check(
    identifier: str,
    kind: Kind,
    statement: str,
    *,
    tolerance: str,
    found: Iterable[str] = (),
    needs: Iterable[str] = (),
    cost: float = 1.0,
    **cases: Cases,
) -> Callable[[Callable[..., None]], Check]:
    """Make a function a :class:`Check`; ``cost`` divides the number of examples."""

    def decorate(body: Callable[..., None]) -> Check:
        return Check(
            identifier,
            kind,
            statement,
            tolerance,
            tuple(found),
            frozenset(needs),
            dict(cases),
            body,
            cost,
        )

    return decorate


def shown(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def _searched(
    attempt: Callable[..., None],
    cases: dict[str, st.SearchStrategy[Any]],
    seed: int | None,
    examples: int,
) -> Callable[[], None]:
    """Hypothesis' search for arguments that make ``attempt`` raise, the smallest there are."""
    if not cases:
        return attempt
    attempt.__signature__ = inspect.Signature(
        [  # type: ignore[attr-defined]
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in cases
        ]
    )
    configured = hypothesis.settings(
        max_examples=examples,
        deadline=None,  # a time limit would make the verdict depend on the machine
        database=None,
        derandomize=seed is None,
        print_blob=False,
        report_multiple_bugs=False,
        phases=(hypothesis.Phase.generate, hypothesis.Phase.target, hypothesis.Phase.shrink),
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    search: Callable[[], None] = configured(hypothesis.given(**cases)(attempt))
    return search if seed is None else hypothesis.seed(seed)(search)


def _asserted(error: BaseException) -> str:
    """The line of source of an assertion without a message."""
    frames = inspect.getinnerframes(error.__traceback__) if error.__traceback__ else []
    context = frames[-1].code_context if frames else None
    return context[0].strip() if context else type(error).__name__
