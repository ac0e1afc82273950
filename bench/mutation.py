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

# The first that is found in "function: line -> line in its place" is the reason.
REASONS: dict[str, str] = {}


def changed(diff: str) -> tuple[str, str]:
    """The lines taken away, and those in their place."""
    lines = [line for line in diff.splitlines() if not line.startswith(("---", "+++"))]
    gone, new = (
        " ".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in "-+"
    )
    return gone, new


def survivor(name: str, path: str) -> dict[str, str]:
    function = re.sub(r"^x_?|__mutmut_\d+$", "", name.rpartition(".")[2]).strip("ǁ")
    gone, new = changed(get_diff_for_mutant(name, path=path))
    function = function.replace("ǁ", ".")
    text = f"{function}: {gone} -> {new}"
    reason = next((why for pattern, why in REASONS.items() if re.search(pattern, text)), "")
    if not reason:
        print(f"no reason for {path} {text}")
    return {"function": function, "line": gone, "in its place": new, "reason": reason}


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
