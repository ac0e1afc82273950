"""Modules and objects by name, which run code: only what the caller names gets here."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from typing import Any

from rl_plugins.errors import UsageError, one_line


def is_qualified(name: str) -> bool:
    """Whether a name is of the form "package.module:Class", so that looking it up imports a module.

    Parameters
    ----------
    name
        Any text.
    """
    module_name, colon, class_name = name.rpartition(":")
    return bool(colon) and all(
        part.isidentifier() for part in (*module_name.split("."), class_name)
    )


def imported(name: str) -> Any:
    """The object that "module:name" stands for.

    Parameters
    ----------
    name
        The module's full name, a colon, the object's name there.

    Raises
    ------
    UsageError
        Where there is no such module or object, and for a name of another form: what asks whether a
        module may be imported, and this, read names alike.
    """
    if not is_qualified(name):
        raise UsageError(f"expected module:Class, got {name!r}")
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UsageError(f"cannot import {name!r}: {error}") from error


def name_of(value: Any) -> str:
    """The name by which :func:`imported` finds an object again.

    Parameters
    ----------
    value
        A class or a function.

    Raises
    ------
    UsageError
        Where it has no such name: one that is defined inside a function or a class, or by a lambda.
    """
    module, name = getattr(value, "__module__", ""), getattr(value, "__qualname__", "")
    if getattr(sys.modules.get(module), name, None) is not value:
        raise UsageError(f"{value!r} cannot be found again; define it at the top of a module")
    return f"{module}:{name}"


def import_all(modules: Iterable[str]) -> None:
    """Import modules by name.

    Parameters
    ----------
    modules
        Their full names.

    Raises
    ------
    UsageError
        Where one cannot be imported.
    """
    for module in modules:
        _import(module)


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except Exception as error:  # a module is any code
        text = one_line(error)
        raise UsageError(f"cannot import {module!r}: {type(error).__name__}: {text}") from error
