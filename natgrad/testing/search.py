"""Hypothesis' search for a counterexample, with the settings of the kit."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import hypothesis
from hypothesis import strategies as st


def searched(
    attempt: Callable[..., None],
    cases: dict[str, st.SearchStrategy[Any]],
    seed: int | None,
    examples: int,
) -> Callable[[], None]:
    """Hypothesis' search for the smallest arguments that make a function raise.

    Parameters
    ----------
    attempt
        A function of keywords, which raises on a counterexample.
    cases
        A strategy for each keyword; without any, ``attempt`` itself is returned.
    seed
        Seed of the search; None derives it from the source of ``attempt``, so that runs agree.
    examples
        Cases to try.

    Returns
    -------
    callable
        Runs the search; it raises the error of the smallest counterexample found.
    """
    if not cases:
        return attempt
    names = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in cases]
    attempt.__signature__ = inspect.Signature(names)  # type: ignore[attr-defined]
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


def asserted(error: BaseException) -> str:
    """The source line of an assertion without a message.

    Parameters
    ----------
    error
        The error, with its traceback.

    Returns
    -------
    str
        The innermost line, or the error's type where the source is not at hand.
    """
    frames = inspect.getinnerframes(error.__traceback__) if error.__traceback__ else []
    context = frames[-1].code_context if frames else None
    return context[0].strip() if context else type(error).__name__
