"""A check: a mathematical statement, the cases that Hypothesis draws, and a verdict on a subject.

A check function asserts its statement. Its first argument is the subject, an object of a class in
:mod:`natgrad.testing.subjects`; the others are the case, one keyword for each strategy that the
decorator :func:`check` names. It returns nothing, raises ``AssertionError`` where the statement
does not hold and :class:`NotApplicable` where the subject does not offer what it needs.
"""

from __future__ import annotations

import dataclasses
import time
import unittest
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from hypothesis import strategies as st

from natgrad.testing.search import asserted, searched

EXAMPLES = 25
# Attempts to shrink a counterexample, in proportion to the number of examples up to EXAMPLES.
SHRINKS = 150
Cases = st.SearchStrategy[Any] | Callable[[Any], st.SearchStrategy[Any]]


class Kind(Enum):
    """The kind of a subject; the value is its name on the command line."""

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
    """The result of a check on a subject; the value is the result in words."""

    PASSED = "held on every case tried"
    FAILED = "a case was found where it does not hold"
    NOT_APPLICABLE = "the subject does not offer, or does not tell, what the check is about"


class NotApplicable(unittest.SkipTest):
    """The subject does not offer what a check is about; pytest reports a skip.

    Parameters
    ----------
    *args
        The reason, in words.
    """


class CheckFailed(AssertionError):
    """A check does not hold: the error carries a counterexample.

    Parameters
    ----------
    check
        The check that failed; kept as an attribute.
    subject
        The subject's name, for the message.
    arguments
        The smallest counterexample found, by argument of the check; kept as an attribute.
    reason
        The failed assertion, or the type and text of another error; kept as an attribute.
    """

    def __init__(self, check: Check, subject: str, arguments: dict[str, Any], reason: str) -> None:
        self.check, self.arguments, self.reason = check, arguments, reason
        super().__init__(
            f"{check.identifier} {check.name}: {check.statement}.\n"
            f"{subject} breaks it at {shown(arguments)}\n{reason}"
        )


@dataclass(frozen=True)
class Verdict:
    """The outcome of a check on a subject.

    Attributes
    ----------
    check
        The check.
    outcome
        Passed, failed or not applicable.
    counterexample
        The arguments of the failed case in words; "" unless the check failed.
    reason
        Why the check failed or does not apply; "" where it passed.
    seconds
        Wall-clock time of the check, in s.
    arguments
        The failed case itself, for :func:`natgrad.testing.counterexample.script`.
    """

    check: Check
    outcome: Outcome
    counterexample: str = ""
    reason: str = ""
    seconds: float = 0.0
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """A mathematical statement that Hypothesis tries to refute on a subject.

    Attributes
    ----------
    identifier
        Its number in the list of the documentation, such as "S4b": a letter follows where an
        entry of the list is several checks.
    kind
        The kind of subjects that it checks.
    statement
        What must hold, in one sentence.
    tolerance
        The slack that is allowed, and the source of the slack.
    found
        Defects in published code that the check finds.
    needs
        Traits that a subject must offer; without one of them the check does not apply.
    cases
        Hypothesis strategies by argument of ``body``, or functions of the subject that return
        one, where the subject's traits bound its cases.
    body
        ``body(subject, **case)`` asserts the statement.
    cost
        Divides the number of examples. Raise it for slow checks.
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
        """The name of the check function."""
        return self.body.__name__

    def __str__(self) -> str:
        return f"{self.identifier}_{self.name}"

    def __call__(self, subject: Any, *, seed: int | None = None, examples: int = EXAMPLES) -> None:
        """Search for a counterexample.

        Parameters
        ----------
        subject
            What :func:`natgrad.testing.subject` returns for the check's kind.
        seed
            Seed of the cases. Without one they are the same in every run; give one to try others.
        examples
            Cases to try before ``cost`` divides them. Raise it to search longer.

        Raises
        ------
        CheckFailed
            With the smallest counterexample found.
        NotApplicable
            If the subject lacks one of ``needs``.
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
            # A fixed state: a subject that draws from the global generator must fail again on the
            # same case, or Hypothesis calls the check flaky.
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
            searched(attempt, cases, seed, count)()
        except unittest.SkipTest as error:
            raise NotApplicable(str(error)) from None
        except Exception as error:
            reason = str(error).strip() or asserted(error)
            if not isinstance(error, AssertionError):
                reason = f"{type(error).__name__}: {reason}"
            raise CheckFailed(self, subject.name, failed, reason) from error

    def examine(
        self, subject: Any, *, seed: int | None = None, examples: int = EXAMPLES
    ) -> Verdict:
        """Search for a counterexample and return the verdict instead of raising it.

        Parameters
        ----------
        subject, seed, examples
            As for calling the check.

        Returns
        -------
        Verdict
            The outcome, with the counterexample and the time taken.
        """
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
    """Turn a check function into a :class:`Check`.

    Parameters
    ----------
    identifier, kind, statement, tolerance, found, needs, cost
        As the attributes of :class:`Check`.
    **cases
        For each other argument of the function, its strategy or a function of the subject that
        returns one.

    Returns
    -------
    callable
        The decorator.
    """

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
    """The arguments of a case as in a call: ``name=value, ...``."""
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())
