"""Writes the measured tables into docs/pages, between their markers, from bench/results.

.venv/bin/python bench/tables.py
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import autoencoders as autoencoders_race
import classification as classification_race
import matrix as loops_matrix
import more_garbow_hillstrom
import poisson as poisson_race
from problems.cells import Cell
from races import Run, load

from natgrad.testing.conformance import all_checks, checks_for

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
PAGES = ROOT / "docs" / "pages"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def curvature() -> str:
    record = json.loads((RESULTS / "curvature.json").read_text())
    models = list(record["threads"]["1"])
    contestants = list(dict.fromkeys(c for model in models for c in record["threads"]["1"][model]))

    def cell(model: str, contestant: str) -> str:
        runs = (record["threads"].get(threads, {}) for threads in ("1", "2"))
        entries = [run.get(model, {}).get(contestant) for run in runs]
        times = " / ".join(f"{entry['median_g']:.2f}" for entry in entries if entry)
        memory = next((entry.get("peak_memory_g") for entry in entries if entry), None)
        return times + (f", {memory:.2f}" if memory else "")

    rows = [[name, *(cell(model, name) for model in models)] for name in contestants]
    versions = ", ".join(f"{name} {value}" for name, value in record["versions"].items())
    notes = "\n".join(f"- {note}" for note in record["notes"])
    return (
        "Time with one thread / with two, then peak memory in units of the gradient's.\n\n"
        + markdown(["", *models], rows)
        + f"\n\n{notes}\n- {versions}"
    )


def accounts() -> str:
    record = json.loads((RESULTS / "accounts.json").read_text())
    header = ["", *next(iter(record["rows"].values()))]
    rows = [
        [
            name,
            *(f"{value:,}" if isinstance(value, int) else f"{value:.3g}" for value in row.values()),
        ]
        for name, row in record["rows"].items()
    ]
    return markdown(header, rows) + (
        f"\n\n`{record['command']}`, {record['machine']}, torch {record['torch']}."
    )


def honesty() -> str:
    record = json.loads((RESULTS / "solver_honesty.json").read_text())
    solvers = list(next(iter(record["rows"].values())))

    def cell(tally: dict[str, float]) -> str:
        worst = f" ({tally['worst']:.2g})" if tally["false"] else ""
        return f"{tally['solved']} / {tally['false']}{worst}"

    rows = [
        [name, *(cell(row[solver]) for solver in solvers)] for name, row in record["rows"].items()
    ]
    false = [
        str(sum(row[solver]["false"] for row in record["rows"].values())) for solver in solvers
    ]
    return markdown(
        [f"{record['systems']} systems", *solvers], [*rows, ["all false claims", *false]]
    )


def solvers() -> str:
    record = json.loads((RESULTS / "primitives.json").read_text())
    entries = [entry for entry in record["benchmarks"] if entry["group"].startswith("20 iter")]
    unit = next(e["median"] for e in entries if e["name"] == "test_natgrad_cg")
    rows = [
        [entry["name"].removeprefix("test_").replace("_", " "), f"{entry['median'] / unit:.2f}"]
        for entry in sorted(entries, key=lambda entry: entry["median"])
    ]
    return markdown(["", "natgrad cg"], rows)


def returns() -> str:
    records = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*-*-v[0-9]-*.json"))]
    records.sort(key=lambda record: (record["settings"]["task"], record["settings"]["algorithm"]))
    rows = [
        [
            record["settings"]["task"],
            record["settings"]["algorithm"],
            f"{record['command'].split('--total-steps ')[1].split()[0]}",
            ", ".join(str(run["seed"]) for run in record["runs"]),
            ", ".join(f"{run['final']:,.1f}" for run in record["runs"]),
            f"{record['mean_of_finals']:,.1f}",
            f"{statistics.median(run['seconds'] for run in record['runs']):.0f}",
        ]
        for record in records
    ]
    header = ["task", "algorithm", "steps", "seeds", "final return, seed by seed", "mean"]
    return markdown([*header, "seconds a run"], rows)


def raced(
    seconds: float, runs: list[Run], record: dict[str, Any], tuning_seed: int | None = None
) -> str:
    """What stands below the table of a race."""
    seeds = sorted({run.seed for run in runs} - {tuning_seed})
    return (
        f"\n\n{seconds:g} s a run, {record['machine']['threads']} thread(s), seeds "
        f"{', '.join(map(str, seeds))}: median (least to most). CPU is the least share of the "
        "seconds that a run had the core for."
    )


def mgh() -> str:
    record = json.loads((RESULTS / "more_garbow_hillstrom.json").read_text())
    table = markdown(more_garbow_hillstrom.HEADER, more_garbow_hillstrom.table_rows(record))
    return f"{table}\n\nOf {record['problems']} problems; failures over all scales."


def poisson() -> str:
    record, runs = load(RESULTS / "poisson.json")
    tables = [
        markdown(poisson_race.header(name), poisson_race.rows(runs, name, record["budget"]))
        for name in dict.fromkeys(run.problem for run in runs)
    ]
    return "\n\n".join(tables) + raced(record["budget"], runs, record, record["tuning_seed"])


def autoencoders() -> str:
    record, runs = load(RESULTS / "autoencoders.json")
    budgets, found = record["budgets"], []
    for name in dict.fromkeys(run.problem for run in runs):
        mine = [run for run in runs if run.problem == name]
        rows = autoencoders_race.rows(mine, name, budgets[name])
        table = markdown(autoencoders_race.header(name), rows)
        found.append(table + raced(budgets[name], mine, record))
    return "\n\n".join(found)


def classification() -> str:
    record, runs = load(RESULTS / "classification.json")
    budget = record["budget"]
    table = markdown(classification_race.header(), classification_race.rows(runs, budget))
    return table + raced(budget, runs, record, record["tuning_seed"])


MARKS = {"passed": "✓", "failed": "✗", "not_applicable": "–"}


def verdicts() -> str:
    record = json.loads((RESULTS / "verdicts.json").read_text())
    found = []
    for kind, subjects in record["kinds"].items():
        outcomes = {
            name: {entry["identifier"]: entry["outcome"] for entry in entries}
            for name, entries in subjects.items()
        }
        found.append(matrix(kind, outcomes) if kind == "solver" else counts(kind, outcomes))
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    legend = "✓ held on every case tried, ✗ failed, – not applicable"
    return "\n\n".join(found) + f"\n\n{legend}. {versions}."


Outcomes = dict[str, dict[str, str]]


def matrix(kind: str, outcomes: Outcomes) -> str:
    rows = [
        [check.identifier, *(MARKS[outcome[check.identifier]] for outcome in outcomes.values())]
        for check in checks_for(kind)
    ]
    failed = [str(list(outcome.values()).count("failed")) for outcome in outcomes.values()]
    return markdown([kind, *outcomes], [*rows, ["failed", *failed]])


def counts(kind: str, outcomes: Outcomes) -> str:
    rows = [
        [
            name,
            *(str(list(outcome.values()).count(key)) for key in MARKS),
            ", ".join(key for key, value in outcome.items() if value == "failed"),
        ]
        for name, outcome in outcomes.items()
    ]
    return markdown([kind, *MARKS.values(), "which failed"], rows)


def counterexamples() -> str:
    record = json.loads((RESULTS / "verdicts.json").read_text())
    found = []
    for kind, subjects in record["kinds"].items():
        statements = {check.identifier: check.statement for check in checks_for(kind)}
        for name, entries in subjects.items():
            failed = [entry for entry in entries if entry["outcome"] == "failed"]
            found += [f"## {name}"] if failed else []
            for entry in failed:
                identifier = entry["identifier"]
                found.append(f"**{identifier}** {statements[identifier]}. *{entry['reason']}*, at")
                found.append(indented(entry["counterexample"]))
                if "code" in entry:
                    found.append(indented(entry["code"].rstrip()))
                    found.append(f"which prints\n\n{indented(entry['prints'].rstrip())}")
    return "\n\n".join(found)


def indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def checks() -> str:
    rows = [
        [each.identifier, each.statement, each.tolerance, "; ".join(each.found)]
        for each in all_checks()
    ]
    header = ["", "what must hold", "tolerance", "found in the field"]
    return markdown(header, [[cell.replace("|", "\\|") for cell in row] for row in rows])


def mutation() -> str:
    record = json.loads((RESULTS / "mutation.json").read_text(encoding="utf-8"))

    def row(name: str, counts: list[dict[str, int]]) -> list[str]:
        mutants, failed, endless = (
            sum(count.get(key, 0) for count in counts) for key in ("mutants", "killed", "timeout")
        )
        share = (failed + endless) / mutants
        left = mutants - failed - endless
        return [name, str(mutants), str(failed), str(endless), str(left), f"{share:.1%}"]

    rows = [row(path.removeprefix("natgrad/"), [count]) for path, count in record["files"].items()]
    rows.append(row("all", list(record["files"].values())))
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    header = ["file", "errors", "seen", "seen by never ending", "survived", "score"]
    return f"{markdown(header, rows)}\n\n{versions}."


def survivors() -> str:
    record = json.loads((RESULTS / "mutation.json").read_text(encoding="utf-8"))
    by_reason: dict[str, list[str]] = {}
    for path, survivors in record["survivors"].items():
        for each in survivors:
            line = f"{Path(path).name} {each['function']}: {each['in its place']}"
            by_reason.setdefault(each["reason"], []).append(line)
    return "\n\n".join(
        f"**{len(lines)}:** {reason}\n\n{indented(chr(10).join(lines))}"
        for reason, lines in sorted(by_reason.items(), key=lambda item: -len(item[1]))
    )


def machines() -> str:
    rows = json.loads((RESULTS / "machines.json").read_text(encoding="utf-8"))["rows"]

    def other(names: list[str]) -> str:
        found: dict[str, list[str]] = {}
        for name in names:
            operation, _, dtype = name.partition(" ")
            found.setdefault(operation, []).append(dtype)
        return ", ".join(
            operation if len(dtypes) == 2 else f"{operation} ({dtypes[0]})"
            for operation, dtypes in found.items()
        )

    def row(name: str, result: dict[str, Any]) -> list[str]:
        if "error" in result:
            return [f"`{name}`", result["changes"], result["error"], "", "", "", ""]
        counts = [str(result[key]) for key in ("passed", "failed", "skipped", "seconds")]
        differs = "" if name == "plain" else other(result["other bits"]) or "nothing here"
        return [f"`{name}`", result["changes"], *counts, differs]

    header = [
        "row", "what it changes", "passed", "failed", "skipped, or failing as expected", "s",
        "other last bits in",
    ]  # fmt: skip
    by_versions: dict[str, list[str]] = {}
    for name, result in rows.items():
        if "error" not in result:
            versions = ", ".join(f"{each} {number}" for each, number in result["versions"].items())
            note = f"Python {result['python']}, {versions}; kernels {result['capability']}, MKL "
            note += f"{result['mkl'].removeprefix('Version ')}, oneDNN {result['onednn']}"
            by_versions.setdefault(note, []).append(f"`{name}`")
    notes = [f"- {', '.join(names)}: {note}" for note, names in by_versions.items()]
    return (
        markdown(header, [row(name, result) for name, result in rows.items()])
        + "\n\n"
        + "\n".join(notes)
    )


def walks() -> str:
    record = json.loads((RESULTS / "revisions.json").read_text())
    header = ["a reader follows", "files before", "files", "stays before", "stays"]
    rows = [
        [
            name,
            *(str(walk[when][what]) for what in ("files", "stays") for when in ("before", "after")),
        ]
        for name, walk in record["walks"].items()
    ]
    return markdown(header, rows)


def revisions() -> str:
    record = json.loads((RESULTS / "revisions.json").read_text())
    kinds: dict[str, list[dict[str, float]]] = {}
    for case, row in record["cases"].items():
        kinds.setdefault(case.split(":")[0], []).append(row)
    rows = []
    for kind, cases in kinds.items():
        ratios = [case["time_ratio"] for case in cases]
        worst = max(case["difference"] for case in cases)
        rows.append(
            [
                f"{kind}s",
                str(len(cases)),
                str(sum(not case["difference"] for case in cases)),
                f"{worst:.0e}" if worst else "0",
                "" if any(map(math.isnan, ratios)) else f"{statistics.median(ratios):.3f}",
                "" if any(map(math.isnan, ratios)) else f"{max(ratios):.3f}",
            ]
        )
    header = [
        "kind", "cases", "the same bit for bit", "largest relative difference",
        "time, median of ratios", "largest ratio",
    ]  # fmt: skip
    sizes = "; ".join(
        f"{package}: {now['all']:,} lines ({was['all']:,} before), {now['code']:,} of code "
        f"({was['code']:,} before)"
        for package, was, now in (
            (package, record["lines"]["before"][package], record["lines"]["after"][package])
            for package in record["lines"]["after"]
        )
    )
    return f"{markdown(header, rows)}\n\nBase: {record['base']}. {sizes}."


def loops(header: str, key: Callable[[Cell], str]) -> str:
    _, cells = loops_matrix.load()
    single = [each for each in cells if len(each.features) == 1]
    columns = [header, "values", "refusals", "wrong", "largest error"]
    return markdown(columns, loops_matrix.tallied(single, key))


def by_loop() -> str:
    return loops("loop", lambda each: each.loop)


def by_feature() -> str:
    return loops("feature", lambda each: each.features[0])


def by_optimizer() -> str:
    return loops("optimizer", lambda each: each.optimizer)


def frameworks() -> str:
    record = json.loads((RESULTS / "frameworks.json").read_text())
    rows = record["optimizers"]
    columns = list(next(iter(rows.values())))
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    table = markdown(
        ["optimizer", *columns], [[name, *found.values()] for name, found in rows.items()]
    )
    return f"{table}\n\n{versions}."


def stacks() -> str:
    record = json.loads((RESULTS / "stacks.json").read_text())
    outcomes = record["outcomes"]
    optimizers = list(dict.fromkeys(each["optimizer"] for each in outcomes))
    refused: list[str] = []

    def cell(each: dict[str, Any]) -> str:
        if each["refusal"]:
            sentence = each["refusal"].split(": ", 1)[1]
            if sentence not in refused:
                refused.append(sentence)
            return f"[{refused.index(sentence) + 1}]"
        if each["crash"]:
            return "crash"
        rises = each["verdict"] == "rises"
        return f"**{each['after']:.3g}**" if rises else f"{each['after']:.3g}"

    rows = []
    for name in dict.fromkeys(each["stack"] for each in outcomes):
        row = [each for each in outcomes if each["stack"] == name]
        rows.append([name, f"{row[0]['before']:.3g}", *map(cell, row)])
    count = sum(not each["crash"] for each in outcomes)
    notes = "\n".join(f"- [{number}] {sentence}" for number, sentence in enumerate(refused, 1))
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    return (
        markdown(["", "start", *optimizers], rows)
        + f"\n\n{notes}\n\n{count} of {len(outcomes)} are a value or a refusal. {versions}."
    )


def refusals() -> str:
    versions, cells = loops_matrix.load()
    refused = sum(bool(each.refusal) for each in cells) / len(cells)
    pairs, wrong = (
        sum(len(each.features) == 2 for each in cells),
        sum(not each.right for each in cells),
    )
    header = ["the error says", "why there is no value", "cells", "mostly in"]
    table = markdown(header, loops_matrix.refusals(cells))
    return (
        f"{table}\n\n{len(cells):,} cells, {pairs} of them of two features; {refused:.1%} refused, "
        f"{wrong} wrong. torch {versions['torch']}."
    )


def main() -> None:
    for page, name, table in (
        ("loops.md", "by loop", by_loop),
        ("loops.md", "by feature", by_feature),
        ("loops.md", "by optimizer", by_optimizer),
        ("loops.md", "refusals", refusals),
        ("loops.md", "frameworks", frameworks),
        ("loops.md", "stacks", stacks),
        ("house.md", "walks", walks),
        ("house.md", "revisions", revisions),
        ("accounts.md", "accounts", accounts),
        ("curvature.md", "curvature", curvature),
        ("solvers.md", "honesty", honesty),
        ("solvers.md", "solvers", solvers),
        ("algorithms.md", "returns", returns),
        ("optimizers.md", "mgh", mgh),
        ("optimizers.md", "poisson", poisson),
        ("optimizers.md", "autoencoders", autoencoders),
        ("optimizers.md", "classification", classification),
        ("verification.md", "verdicts", verdicts),
        ("verification.md", "checks", checks),
        ("counterexamples.md", "counterexamples", counterexamples),
        ("machines.md", "machines", machines),
        ("mutation.md", "mutation", mutation),
        ("mutation.md", "survivors", survivors),
    ):
        path = PAGES / page
        text = path.read_text(encoding="utf-8")
        try:
            lines = table()
        except FileNotFoundError as error:  # not measured yet: the page stays as it is
            print(f"{page}: no table {name!r} without {Path(error.filename).name}")
            continue
        marked = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"

        def between(match: re.Match[str], lines: str = lines) -> str:
            return f"{match[1]}{lines}\n{match[2]}"

        filled, found = re.subn(marked, between, text, flags=re.S)
        if not found:
            raise SystemExit(f"{path.relative_to(ROOT)} has no markers for the table {name!r}")
        path.write_text(filled, encoding="utf-8")


if __name__ == "__main__":
    main()
