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
