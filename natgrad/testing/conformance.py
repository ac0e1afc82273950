"""The faces of the kit: checks by kind, all of them at once, and as parameters of a pytest test."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from natgrad.testing import properties
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
    subject: Any,
    kind: Kind | str,
    *,
    seed: int | None = None,
    examples: int = EXAMPLES,
    told: Callable[[Verdict], None] = lambda verdict: None,
) -> list[Verdict]:
    """The verdict of every check of the kind; ``told`` hears each as it comes."""
    verdicts = []
    for each in checks_for(kind):
        verdicts.append(each.examine(subject, seed=seed, examples=examples))
        told(verdicts[-1])
    return verdicts


def enforce(
    subject: Any,
    kind: Kind,
    expected_failures: Mapping[str, str] | None,
    seed: int | None,
    examples: int,
) -> list[Verdict]:
    """:func:`examine`, and raise :class:`ChecksFailed` where the outcome is not the expected one:
    an expected failure that holds by now is a surprise too."""
    expected = dict(expected_failures or {})
    known = {each.identifier for each in checks_for(kind)}
    if unknown := set(expected) - known:
        raise ValueError(
            f"expected_failures names {sorted(unknown)}; the checks of a {kind.value} are "
            f"{sorted(known)}"
        )
    verdicts = examine(subject, kind, seed=seed, examples=examples)
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
        raise ChecksFailed(subject.name, verdicts, surprising)
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
    for subject in subjects:
        reasons = (expected_failures or {}).get(subject.name, {})
        for each in checks_for(kind):
            reason = reasons.get(each.identifier)
            marks = [pytest.mark.xfail(strict=True, reason=reason)] if reason else []
            parameters.append(pytest.param(subject, each, id=f"{subject.name}-{each}", marks=marks))
    return pytest.mark.parametrize(("subject", "check"), parameters)


def _order(each: Check) -> tuple[str, int, str]:
    letter, rest = each.identifier[0], each.identifier[1:]
    digits = "".join(character for character in rest if character.isdigit())
    return letter, int(digits or 0), rest
