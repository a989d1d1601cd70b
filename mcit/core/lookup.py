"""Name to class by file name: ``reglora`` is ``mcit.methods.reglora``; ``module:Class`` is code from elsewhere.

There is no list to extend. Existence is checked by looking for the file, without importing it (and so without torch).
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import mcit
from mcit.core.config import suggestion
from mcit.core.errors import ConfigError, Problem
from mcit.core.files import sha256_file

_ROOT = Path(mcit.__file__).parent
_HIDDEN = {"__init__", "base", "check", "claimed", "compose"}


def known(package: str) -> list[str]:
    """Names available in a package such as ``methods`` or ``evals.scorers``, by file name."""
    folder = _ROOT.joinpath(*package.split("."))
    return sorted(p.stem for p in folder.glob("*.py") if p.stem not in _HIDDEN and not p.stem.startswith("_"))


def missing(package: str, name: str, *, where: str) -> Problem | None:
    """A Problem if `name` is not in `package` (outside code ``module:Class`` is looked up too), else None."""
    if ":" in name:
        module = name.partition(":")[0]
        try:
            found = importlib.util.find_spec(module) is not None
        except (ImportError, ValueError):
            found = False
        if found:
            return None
        return Problem(where, f"module '{module}' cannot be imported", "put its folder on PYTHONPATH, or install it")
    if name in known(package):
        return None
    return Problem(where, f"there is no '{name}' in mcit.{package}", suggestion(name, known(package)))


def module_of(package: str, name: str) -> ModuleType:
    """Import ``mcit.<package>.<name>``. Raises ConfigError when there is no such file."""
    problem = missing(package, name, where=package)
    if problem:
        raise ConfigError(problem.what, where=problem.where, fix=problem.fix)
    return importlib.import_module(f"mcit.{package}.{name}")


def source_digest(cls: type) -> str:
    """SHA-256 of the file that a class is written in; empty for one that no file holds."""
    path = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return sha256_file(path) if path and Path(path).is_file() else ""


def class_of(package: str, name: str, *, base: type) -> type[Any]:
    """The one public subclass of `base` in the named module, or the class named by ``module:Class``.

    Raises ConfigError when nothing fits.
    """
    problem = missing(package, name, where=package)
    if problem:
        raise ConfigError(problem.what, where=problem.where, fix=problem.fix)
    if ":" in name:
        module_name, _, class_name = name.partition(":")
        found = getattr(importlib.import_module(module_name), class_name, None)
        if not (isinstance(found, type) and issubclass(found, base)):
            raise ConfigError(
                f"{name} is not a {base.__name__}", where=package, fix="name a class that inherits from it"
            )
        return found
    module = importlib.import_module(f"mcit.{package}.{name}")
    classes = [
        c
        for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, base) and c is not base and c.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise ConfigError(
            f"{module.__name__} must hold exactly one {base.__name__}", where=package, fix="split the file"
        )
    return classes[0]
