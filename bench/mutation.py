"""What `mutmut run` found, per file of the two packages: counts, and what survived with its reason.

.venv/bin/python bench/mutation.py
"""

from __future__ import annotations

import json
import platform
import re
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code

ROOT = Path(__file__).parent.parent
OUT = ROOT / "bench" / "results" / "mutation.json"
NOT_RUN = 255  # which mutmut counts as a timeout

EQUAL = (
    "The same in other words: a sum that starts at 0, `None` for false, an end that no loop "
    "reaches, a sign that says what a product or a quotient says, a square's other side, a default "
    "that only has to be allowed."
)
TIE = "They part only where two computed numbers are equal, and there both are right."
HIDDEN = (
    "Hidden by another line: of an entry that is masked, of a status that whatever is not finite "
    "gets anyway."
)
DEVICE = "The device of a new tensor. The tests have one."
SCALE = "Another power of two, undone at the end."
WORK = "Work and not answers: what is tried first, how often, where to stop early, how memory lies."
ROUNDING = (
    "The last digits only: the same number carried on, instead of known, or scaled by 1 ± eps."
)
GUARD = "Against what rounding might do. No case is known in which it does."
CHOICE = (
    "A choice of constants: how long MINRES follows a solution of least squares, what it grants to "
    "rounding there, what it knows of ‖T‖ at first; at what radius, beyond any path's, the path is "
    "cut. The tests hold them to what they claim."
)
BY_ENTRIES = (
    "More singular values are judged by their entries. They part only where a row and a column are "
    "both small by some eps of float32."
)
DERIVATIVE = (
    "A setting of the solve that a derivative is. The tests of most of them are newer than this "
    "table."
)
GRAPH = "The search of a graph for parameters: visited twice, kept alive, or a zero for nothing."
SOLVER = (
    "How a solver's arguments are read: none of the tests has one that would be read otherwise."
)
# In "file function: line -> the line in its place"; the first found is the reason.
REASONS = {
    r"device=(\w+(\._\w)?\.)?device\b.* -> (?!.*device=(\w+(\._\w)?\.)device)": DEVICE,
    r"Generator\(None\)": DEVICE,
    r"new_zeros\((1|0, 0|\(\)).* -> ": EQUAL,
    r"(evaluations|products) \+= 1 -> [\w.]+ = 1$|= False -> .*= None$": EQUAL,
    r"\(product is None\) and False|shape\[1\],$|new_empty\(1\)|pole, None\)": EQUAL,
    r"zip\(|(check_tolerances|Scaled\.of): def|sign >= 0": EQUAL,
    r"< math\.inf: -> .*<= math\.inf|cos / gamma_bar": EQUAL,
    r"slope > 0: *$": "Where φ′ is 0 and φ too high, the secant bisects, as U3 does.",
    r"NONFINITE.* -> .*\bNone\b|, 2\.0\)|finite or bool|= self\.alive, self\.alive": HIDDEN,
    r"range\([23] \+ REFINEMENTS\)|range\((3|101)\)|bool\(None\)|TALL": WORK,
    r"rtol / torch\.linalg\.vector_norm|eps / shifted|np\.array\(vector": WORK,
    r"check_every > 1\) or True|_takes_damping: .* -> .*(= None$|getattr\(None|XX|CODE)": WORK,
    r"doubtful = values|doubtful = \(values <= noise\) \|": WORK,
    r"doubtful \|= values|rows >= 0": BY_ENTRIES,
    r"power_of_two\(\w+\) \* power_of_two|vector \* power_of_two": SCALE,
    r"torch\.clamp\(.*-> \w = \w [*/] torch\.clamp|precondition is None\) and False": ROUNDING,
    r"to_boundary: |\(radius \* length\)|(claim|shift).*\.to\(None\)|small = ": ROUNDING,
    r"cg_recurrence\.py .*amping\) or True|euclidean=None|BOUNDARY and": ROUNDING,
    r"ratios = |direction = vectors|rz > 0|101 \* self|3 \* torch": GUARD,
    r"(cg|minres|lanczos|cholesky)\.py (cg|minres|lanczos|cholesky): ": DERIVATIVE,
    r"sphere\.py|SteihaugPath\.__init__: |LeastSquares\._differentiable: ": DERIVATIVE,
    r"implicit\.py ": GRAPH,
    r"_takes_damping: ": SOLVER,
    r"\.to\(None\) if status|rise - curvature": HIDDEN,
    r"minres\.py .*(flat|patience|error|torch\.where\(last)|\._bound: ": CHOICE,
}


def changed(diff: str) -> tuple[str, str]:
    """The lines taken away, and those in their place."""
    lines = [line for line in diff.splitlines() if not line.startswith(("---", "+++"))]
    gone, new = (
        " ".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in "-+"
    )
    return gone, new


def reason(text: str) -> str:
    for pattern, why in REASONS.items():
        if re.search(pattern, text):
            return why
    gone, _, new = re.sub(r"([<>])=", r"\1", text).partition(" -> ")
    return TIE if gone.endswith(": " + new) else ""


def survivor(name: str, path: str) -> dict[str, str]:
    function = name.rpartition(".")[2].rpartition("__mutmut_")[0]
    function = function.removeprefix("x").removeprefix("_").strip("ǁ").replace("ǁ", ".")
    gone, new = changed(get_diff_for_mutant(name, path=path))
    text = f"{path} {function}: {gone} -> {new}"
    if not (why := reason(text)):
        print(f"no reason: {text}")
    return {"function": function, "line": gone, "in its place": new, "reason": why}


def main() -> None:
    files, survivors = {}, {}
    for meta in sorted((ROOT / "mutants").rglob("*.meta")):
        path = str(meta.relative_to(ROOT / "mutants").with_suffix(""))
        codes = json.loads(meta.read_text())["exit_code_by_key"]
        if NOT_RUN in codes.values() or None in codes.values():
            raise SystemExit(f"{path}: some mutants have not been run, or pytest would not start")
        found = {name: status_by_exit_code[code] for name, code in codes.items()}
        if not found:
            continue
        files[path] = {"mutants": len(found), **Counter(found.values())}
        left = [name for name, status in found.items() if status not in ("killed", "timeout")]
        survivors[path] = [survivor(name, path) for name in left]
    record = {
        "command": "make mutation",
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("mutmut", "torch", "hypothesis")},
        },
        "files": files,
        "survivors": survivors,
    }
    OUT.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
