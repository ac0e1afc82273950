"""The faces of the kit: checks by kind, all of them at once, and as parameters of a pytest test."""

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
    """Some checks failed that were not expected to; ``verdicts`` are those of all."""

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
    """The checks of a kind, or of its name on the command line.

    Each is called on a subject, ``check(subject)``, and raises ``CheckFailed`` with a
    counterexample; ``check.examine(subject)`` gives a :class:`Verdict` instead.

    >>> [check.identifier for check in checks_for("step-size")]
    ['N3', 'N3b']
    """
    kind = Kind(kind)
    return tuple(each for each in all_checks() if each.kind is kind)


def examine(
    tested: Any, kind: Kind | str, *, seed: int | None = None, examples: int = EXAMPLES
) -> list[Verdict]:
    """The verdict of every check of the kind."""
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
    """Every check of the kind on ``thing``, a subject or what :func:`natgrad.testing.subject` makes
    one of; the verdicts.

    Raises :class:`ChecksFailed` where an outcome is not the expected one. ``expected_failures``
    maps identifiers of checks to reasons; one of them that holds by now is a surprise too.
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

    ``expected_failures`` maps a subject's name to {identifier: reason}: those are strict xfails, so
    that a repaired subject is noticed.
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


# Each takes (thing, traits=(), *, expected_failures=None, seed=None, examples=25): see enforce.
check_operator = partial(enforce, kind=Kind.OPERATOR)
check_curvature = partial(enforce, kind=Kind.CURVATURE)
check_kronecker = partial(enforce, kind=Kind.KRONECKER)
check_solver = partial(enforce, kind=Kind.SOLVER)
check_damped_least_squares = partial(enforce, kind=Kind.DAMPED_LEAST_SQUARES)
check_trust_region_solver = partial(enforce, kind=Kind.TRUST_REGION_SOLVER)
check_step_size = partial(enforce, kind=Kind.STEP_SIZE)
check_line_search = partial(enforce, kind=Kind.LINE_SEARCH)
check_optimizer = partial(enforce, kind=Kind.OPTIMIZER)
check_minimiser = partial(enforce, kind=Kind.MINIMISER)
check_advantages = partial(enforce, kind=Kind.ADVANTAGES)


def _order(each: Check) -> tuple[str, int, str]:
    letter, rest = each.identifier[0], each.identifier[1:]
    digits = "".join(character for character in rest if character.isdigit())
    return letter, int(digits or 0), rest
