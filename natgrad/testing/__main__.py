"""The command ``python -m natgrad.testing MODULE:NAME --kind KIND``: a table of verdicts."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from natgrad.testing.adapters import load, subject
from natgrad.testing.check import EXAMPLES, Outcome, Verdict
from natgrad.testing.conformance import checks_for
from natgrad.testing.counterexample import script

SHOWN = {
    Outcome.PASSED: "[green]passed[/]",
    Outcome.FAILED: "[bold red]failed[/]",
    Outcome.NOT_APPLICABLE: "[dim]–[/]",
}


@dataclass(frozen=True)
class Arguments:
    """Search for cases where a solver, operator, line search or optimizer breaks what mathematics
    guarantees. Exit status: 0 where every check held, 1 where one failed, 2 for a wrong call."""

    target: Annotated[str, tyro.conf.Positional]
    """The object to check, as MODULE:NAME."""
    kind: Literal[
        "operator",
        "curvature",
        "kronecker",
        "solver",
        "damped-least-squares",
        "trust-region-solver",
        "step-size",
        "line-search",
        "optimizer",
        "minimiser",
        "advantages",
    ]
    """The kind of the object."""
    traits: tuple[str, ...] = ()
    """Promises beyond its signature: see the kind's class in natgrad.testing.subjects."""
    only: tuple[str, ...] = ()
    """Identifiers of the checks to run; all by default."""
    seed: int | None = None
    """Seed of the cases; without one they are the same in every run."""
    examples: int = EXAMPLES
    """Cases for each check."""
    json: bool = False
    """Print the verdicts as JSON instead of a table."""


def main(arguments: Arguments) -> int:
    """Run the command; return its exit status.

    Parameters
    ----------
    arguments
        The parsed command line.
    """
    torch.set_num_threads(1)  # small matrices are faster with one
    warnings.simplefilter("ignore")  # the subject's warnings; the verdicts say what matters
    problems = Console(stderr=True, emoji=False)
    try:
        tested = subject(load(arguments.target), arguments.kind, arguments.traits)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        problems.print(escape(f"{arguments.target}: {error}"), style="red", highlight=False)
        return 2
    checks = checks_for(arguments.kind)
    if unknown := set(arguments.only) - {each.identifier for each in checks}:
        problems.print(f"no such check: {', '.join(sorted(unknown))}", style="red")
        return 2
    verdicts = []
    with problems.status("") as status:
        for each in checks:
            if not arguments.only or each.identifier in arguments.only:
                status.update(f"{each.identifier} {each.statement}")
                verdicts.append(
                    each.examine(tested, seed=arguments.seed, examples=arguments.examples)
                )
    if arguments.json:
        records = [record(verdict, tested) for verdict in verdicts]
        print(json.dumps({"subject": tested.name, "verdicts": records}, indent=1))
    else:
        Console(emoji=False).print(table(tested.name, verdicts))
    return int(any(verdict.outcome is Outcome.FAILED for verdict in verdicts))


def record(verdict: Verdict, tested: Any) -> dict[str, Any]:
    """A verdict as a record for JSON.

    Parameters
    ----------
    verdict
        The verdict.
    tested
        The subject.

    Returns
    -------
    dict
        Its ``code`` is a script that shows a failure without natgrad, or None.
    """
    failed = verdict.outcome is Outcome.FAILED
    return {
        "identifier": verdict.check.identifier,
        "check": verdict.check.name,
        "statement": verdict.check.statement,
        "outcome": verdict.outcome.name.lower(),
        "counterexample": verdict.counterexample,
        "reason": verdict.reason,
        "code": script(verdict, tested) if failed else None,
        "seconds": round(verdict.seconds, 3),
    }


def table(name: str, verdicts: list[Verdict]) -> Table:
    """Verdicts as a table.

    Parameters
    ----------
    name
        The subject's name, the title.
    verdicts
        A row each.
    """
    counts = [sum(v.outcome is outcome for v in verdicts) for outcome in Outcome]
    caption = "{} passed, {} failed, {} not applicable".format(*counts)
    shown = Table("", "check", "verdict", "counterexample and reason", title=name, caption=caption)
    for verdict in verdicts:
        found = [text for text in (verdict.counterexample, verdict.reason) if text]
        shown.add_row(
            verdict.check.identifier,
            escape(verdict.check.statement),
            SHOWN[verdict.outcome],
            escape("\n".join(found)),
        )
    return shown


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, prog="python -m natgrad.testing")))
