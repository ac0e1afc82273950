"""The import rule that import-linter cannot say: plugins use natgrad's public names only."""

import ast
import importlib
from pathlib import Path

import natgrad

ROOT = Path(__file__).parent.parent


def test_plugins_import_only_what_natgrad_exports():
    offences = []
    for path in sorted((ROOT / "rl_plugins").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.ImportFrom) and node.module):
                continue
            package, *rooms = node.module.split(".")
            if package != "natgrad":
                continue
            module = importlib.import_module(node.module)
            public = getattr(module, "__all__", dir(module))
            private = [a.name for a in node.names if a.name not in public or a.name[0] == "_"]
            if len(rooms) > 1 or private:
                offences.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.module} {private}")
    assert offences == []


def test_every_public_name_is_documented():
    undocumented = [
        name for name in natgrad.__all__ if not (getattr(natgrad, name).__doc__ or "").strip()
    ]
    assert undocumented == []


def test_no_room_without_a_name():
    nameless = {"utils", "util", "helpers", "helper", "common", "misc"}
    found = [
        str(path.relative_to(ROOT))
        for house in ("natgrad", "rl_plugins")
        for path in (ROOT / house).rglob("*")
        if path.stem in nameless
    ]
    assert found == []


def sources():
    for house in ("natgrad", "rl_plugins"):
        for path in sorted((ROOT / house).rglob("*.py")):
            yield path, path.read_text(encoding="utf-8")


def test_no_file_is_over_300_lines():
    long = {str(path.relative_to(ROOT)): text.count("\n") for path, text in sources()}
    assert {path: lines for path, lines in long.items() if lines > 300} == {}


def test_no_function_is_over_80_lines_without_its_docstring():
    found = []
    for path, text in sources():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                if not body:
                    continue
                lines = (body[-1].end_lineno or 0) - body[0].lineno + 1
                if lines > 80:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name} {lines}")
    assert found == []


def test_the_formatter_decides_alone():
    assert [str(path) for path, text in sources() if "fmt: skip" in text] == []
