"""Every public callable describes every argument, and no two public things share a name."""

import ast
import dataclasses
import enum
import importlib
import inspect
import itertools
import re
import textwrap

import pytest

PACKAGES = (
    "natgrad",
    "natgrad.autodiff",
    "natgrad.curvature",
    "natgrad.curvature.metrics",
    "natgrad.flat",
    "natgrad.optim",
    "natgrad.solvers",
    "natgrad.solvers.preconditioners",
    "natgrad.testing",
    "natgrad.trust_region",
    "rl_plugins",
    "rl_plugins.agents",
    "rl_plugins.critics",
    "rl_plugins.data",
    "rl_plugins.policies",
    "rl_plugins.runs",
)
# Names that a section of a docstring describes: "name", "name : type", "*name", "one, other".
ENTRY = re.compile(r"^(\*{0,2}\w+(?:, \*{0,2}\w+)*)(?: : .*)?$", re.MULTILINE)


def exported(package):
    module = importlib.import_module(package)
    names = getattr(module, "__all__", None)
    if names is None:
        names = [
            name
            for name, value in vars(module).items()
            if name[0] != "_" and getattr(value, "__module__", "") == package
        ]
    return {name: getattr(module, name) for name in names}


def callables():
    found: dict[int, tuple[str, object]] = {}
    for package in PACKAGES:
        for name, value in exported(package).items():
            if inspect.isfunction(value) or inspect.isclass(value):
                found.setdefault(id(value), (f"{package}.{name}", value))
    return sorted(found.values(), key=lambda pair: pair[0])


def described(docstring):
    """The names in the sections Parameters and Attributes."""
    names: set[str] = set()
    sections = re.split(r"^(\w[\w ]*)\n-+\n", docstring, flags=re.MULTILINE)
    for title, text in zip(sections[1::2], sections[2::2], strict=True):
        if title in ("Parameters", "Attributes", "Other Parameters"):
            for entry in ENTRY.findall(text):
                names.update(name.strip("* ") for name in entry.split(","))
    return names


def fields_with_docstrings(kind):
    """Fields of a dataclass that a string literal follows."""
    names = set()
    for base in kind.__mro__[:-1]:
        try:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except (OSError, TypeError):
            continue
        assert isinstance(tree, ast.ClassDef)
        for field, text in itertools.pairwise(tree.body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                names.add(ast.unparse(field.target))
    return names


def arguments(value):
    if inspect.isclass(value) and issubclass(value, (enum.Enum, BaseException)):
        return []
    if inspect.isclass(value) and getattr(value, "_is_protocol", False):
        return []
    parameters = inspect.signature(value).parameters.values()
    return [p.name for p in parameters if p.name not in ("self", "cls")]


@pytest.mark.parametrize(
    ("name", "value"), callables(), ids=lambda each: each if isinstance(each, str) else ""
)
def test_every_argument_is_described(name, value):
    # A class may leave its arguments to the base whose constructor it has.
    sources = value.__mro__[:-1] if inspect.isclass(value) else [value]
    known = set().union(*(described(inspect.cleandoc(each.__doc__ or "")) for each in sources))
    if dataclasses.is_dataclass(value):
        known |= fields_with_docstrings(value)
    assert [argument for argument in arguments(value) if argument not in known] == []


def test_no_two_public_things_share_a_name():
    meanings: dict[str, dict[int, str]] = {}
    for package in PACKAGES:
        for name, value in exported(package).items():
            if not inspect.ismodule(value):
                meanings.setdefault(name, {})[id(value)] = package
    shared = {name: sorted(of.values()) for name, of in meanings.items() if len(of) > 1}
    assert shared == {}
