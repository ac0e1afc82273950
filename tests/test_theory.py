"""The theory's page names code and tests that are there, for each of its eighteen lines."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "pages" / "theory.md").read_text(encoding="utf-8")
_, *PARTS = re.split(r"^### (\d+)\. ", PAGE, flags=re.M)
LINES = dict(zip(map(int, PARTS[::2]), PARTS[1::2], strict=True))


def test_there_are_lines_1_to_18():
    assert list(map(int, PARTS[::2])) == list(range(1, 19))


def resolved(name):
    """The object of a dotted name; a function before a module of the same name."""
    package, *parts = name.split(".")
    value = importlib.import_module(package)
    for part in parts:
        if not hasattr(value, part):
            importlib.import_module(f"{value.__name__}.{part}")
        value = getattr(value, part)
    return value


@pytest.mark.parametrize("line", LINES)
def test_every_function_of_the_line_can_be_imported(line):
    names = re.findall(r"`((?:natgrad|rl_plugins)(?:\.\w+)+)`", LINES[line])
    assert names
    assert all(callable(resolved(name)) for name in names)


@pytest.mark.parametrize("line", LINES)
def test_every_test_of_the_line_is_in_its_file(line):
    cited = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", LINES[line])
    assert cited
    assert len(cited) == LINES[line].count("::")  # none is written in another way
    for path, name in cited:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name
