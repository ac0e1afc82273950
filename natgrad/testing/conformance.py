"""Entry points of the kit: checks by kind, all checks of a subject, and pytest parameters."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from natgrad.testing import properties
from natgrad.testing.adapters import subject
from natgrad.testing.check import EXAMPLES, Check, Kind, Outcome, Verdict

if TYPE_CHECKING:
    import pytest


class ChecksFailed(AssertionError):
    """The outcome of some checks is not the expected one.

    Parameters
    ----------
    subject
        The subject's name, for the message.
    verdicts
        The verdicts of all checks; kept as an attribute.
    surprising
        A paragraph for each unexpected outcome, for the message.
    """

    def __init__(self, subject: str, verdicts: list[Verdict], surprising: list[str]) -> None:
        self.verdicts = verdicts
        super().__init__(
            f"{subject}: {len(surprising)} checks failed\n\n" + "\n\n".join(surprising)
        )


@cache
def all_checks() -> tuple[Check, ...]:
    """Every check of the kit, in the order of the documentation's list within each kind."""
    found = []
    for module in pkgutil.iter_modules(properties.__path__):
        loaded = importlib.import_module(f"{properties.__name__}.{module.name}")
        found += [each for each in vars(loaded).values() if isinstance(each, Check)]
    return tuple(sorted(found, key=_order))


def checks_for(kind: Kind | str) -> tuple[Check, ...]:
    """The checks of a kind of subjects.

    Parameters
    ----------
    kind
        The kind, or its name on the command line.

    Returns
    -------
    tuple of Check
        In the order of the documentation's list. ``check(subject)`` raises ``CheckFailed`` with a
        counterexample; ``check.examine(subject)`` returns a :class:`Verdict` instead.

    Examples
    --------
    >>> [check.identifier for check in checks_for("step-size")]
    ['N3', 'N3b']
    """
    kind = Kind(kind)
    return tuple(each for each in all_checks() if each.kind is kind)


def examine(
    tested: Any, kind: Kind | str, *, seed: int | None = None, examples: int = EXAMPLES
) -> list[Verdict]:
    """The verdict of every check of a kind on a subject.

    Parameters
    ----------
    tested
        What :func:`natgrad.testing.subject` returns for the kind.
    kind
        The kind, or its name on the command line.
    seed
        Seed of the cases. Without one they are the same in every run; give one to try others.
    examples
        Cases for each check, fewer for slow ones. Raise it to search longer.

    Returns
    -------
    list of Verdict
        In the order of :func:`checks_for`.
    """
    return [each.examine(tested, seed=seed, examples=examples) for each in checks_for(kind)]


def enforce(
    thing: Any,
    traits: Iterable[str] = (),
    *,
    kind: Kind | str,
    expected_failures: Mapping[str, str] | None = None,
    seed: int | None = None,
    examples: int = EXAMPLES,
) -> list[Verdict]:
    """Run every check of a kind on ``thing``; raise where an outcome is not the expected one.

    Parameters
    ----------
    thing
        A subject, or an object that :func:`natgrad.testing.subject` makes one of.
    traits
        What ``thing`` promises beyond its signature: see its class in
        :mod:`natgrad.testing.subjects`. Name one to add the checks that need it.
    kind
        The kind, or its name on the command line.
    expected_failures
        Reasons by identifier of the checks that are known to fail.
    seed
        Seed of the cases. Without one they are the same in every run; give one to try others.
    examples
        Cases for each check, fewer for slow ones. Raise it to search longer.

    Returns
    -------
    list of Verdict
        The verdicts of all checks, in the order of :func:`checks_for`.

    Raises
    ------
    ChecksFailed
        If a check fails unexpectedly, or one of ``expected_failures`` does not fail.
    ValueError
        If ``expected_failures`` names a check that the kind does not have.
    """
    kind, tested = Kind(kind), subject(thing, kind, traits)
    expected = dict(expected_failures or {})
    known = {each.identifier for each in checks_for(kind)}
    if unknown := set(expected) - known:
        raise ValueError(
            f"expected_failures names {sorted(unknown)}; the checks of a {kind.value} are "
            f"{sorted(known)}"
        )
    verdicts = examine(tested, kind, seed=seed, examples=examples)
    surprising = []
    for verdict in verdicts:
        identifier = verdict.check.identifier
        failed = verdict.outcome is Outcome.FAILED
        if failed and identifier not in expected:
            surprising.append(
                f"{verdict.check}: {verdict.check.statement}\n  at {verdict.counterexample}\n"
                f"  {verdict.reason}"
            )
        elif not failed and identifier in expected:
            surprising.append(
                f"{verdict.check} was expected to fail ({expected[identifier]}), and "
                f"{verdict.outcome.value}"
            )
    if surprising:
        raise ChecksFailed(tested.name, verdicts, surprising)
    return verdicts


def parametrize_with_checks(
    subjects: Iterable[Any],
    kind: Kind | str,
    *,
    expected_failures: Mapping[str, Mapping[str, str]] | None = None,
) -> pytest.MarkDecorator:
    """A pytest decorator for ``test(subject, check)``: every subject with every check of its kind.

    Parameters
    ----------
    subjects
        Subjects of the kind: what :func:`natgrad.testing.subject` returns.
    kind
        The kind, or its name on the command line.
    expected_failures
        {identifier: reason} by subject's name. These become strict xfails, so that a check that
        holds after all fails the test.

    Returns
    -------
    pytest.MarkDecorator
        It parametrises ``subject`` and ``check``; the test calls ``check(subject)``.
    """
    import pytest

    parameters = []
    for tested in subjects:
        reasons = (expected_failures or {}).get(tested.name, {})
        for each in checks_for(kind):
            reason = reasons.get(each.identifier)
            marks = [pytest.mark.xfail(strict=True, reason=reason)] if reason else []
            parameters.append(pytest.param(tested, each, id=f"{tested.name}-{each}", marks=marks))
    return pytest.mark.parametrize(("subject", "check"), parameters)


def _enforced(kind: Kind, thing: str) -> partial[list[Verdict]]:
    """:func:`enforce` for one kind, with a docstring that ``help`` shows."""
    checker = partial(enforce, kind=kind)
    checker.__doc__ = f"""Run every check of the kind "{kind.value}"; see :func:`enforce`.

    Parameters
    ----------
    thing
        {thing}.
        Otherwise a subject, or an object of a package that has an adapter.
    traits
        What ``thing`` promises beyond its signature. Name one to add the checks that need it.
    kind
        Set by this function; leave it.
    expected_failures
        Reasons by identifier of the checks that are known to fail.
    seed
        Seed of the cases. Without one they are the same in every run; give one to try others.
    examples
        Cases for each check, fewer for slow ones. Raise it to search longer.

    Returns
    -------
    list of Verdict
        The verdicts of all checks.

    Raises
    ------
    ChecksFailed
        If a check fails unexpectedly, or one of ``expected_failures`` does not fail.
    ValueError
        If ``expected_failures`` names a check that the kind does not have.
    """
    return checker


# help(check_solver) lists the arguments of each: thing, traits, expected_failures, seed, examples.
check_operator = _enforced(Kind.OPERATOR, "``make(matrix)`` returns an object with ``A @ v``")
check_curvature = _enforced(
    Kind.CURVATURE, "``make(case)`` returns an object with ``A @ v``; a trait names its matrix"
)
check_kronecker = _enforced(Kind.KRONECKER, "``make(case)`` returns an object with ``A @ v``")
check_solver = _enforced(Kind.SOLVER, "``solve(A, b, rtol=...)`` returns x or an answer with x")
check_damped_least_squares = _enforced(
    Kind.DAMPED_LEAST_SQUARES, "``solve(J, r, damping)`` returns s or an answer with x"
)
check_trust_region_solver = _enforced(
    Kind.TRUST_REGION_SOLVER, "``solve(A, g, radius, rtol=...)`` returns s or an answer with x"
)
check_step_size = _enforced(Kind.STEP_SIZE, "``rule(sKs, delta)`` returns alpha")
check_line_search = _enforced(
    Kind.LINE_SEARCH, "A line search that ``LineSearch.of`` in natgrad.testing.subjects describes"
)
check_optimizer = _enforced(
    Kind.OPTIMIZER, "A class of optimizers, or ``make(model)``, which returns an optimizer"
)
check_minimiser = _enforced(
    Kind.MINIMISER, "``minimise(f, start)`` returns an object with ``x`` and ``success``"
)
check_advantages = _enforced(
    Kind.ADVANTAGES,
    "``estimate(rewards, values, next_values, terminated, truncated, discount=, decay=)``",
)


def _order(each: Check) -> tuple[str, int, str]:
    letter, rest = each.identifier[0], each.identifier[1:]
    digits = "".join(character for character in rest if character.isdigit())
    return letter, int(digits or 0), rest
