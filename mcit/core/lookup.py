"""Name to class by file name: ``reglora`` is ``mcit.methods.reglora``.

Code from elsewhere is named ``module:Class``, ``./file.py:Class``, or ``./file.py`` where it holds one class. There is no
list to extend. Existence is checked by looking for the file, without importing it (and so without torch).
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import mcit
from mcit.core.config import suggestion
from mcit.core.errors import ConfigError, McitError, Problem
from mcit.core.files import sha256_bytes, sha256_file

_ROOT = Path(mcit.__file__).parent
_HIDDEN = {"__init__", "base", "check", "claimed", "compose", "flow", "objective"}


def known(package: str) -> list[str]:
    """Names available in a package such as ``methods`` or ``evals.scorers``, by file name."""
    folder = _ROOT.joinpath(*package.split("."))
    return sorted(p.stem for p in folder.glob("*.py") if p.stem not in _HIDDEN and not p.stem.startswith("_"))


def outside(name: str) -> bool:
    """Whether a name is of code elsewhere: ``module:Class``, ``./file.py:Class`` or ``./file.py``."""
    return ":" in name or name.endswith(".py")


def missing(package: str, name: str, *, where: str) -> Problem | None:
    """A Problem if `name` is not in `package` (code from elsewhere is looked up too, not imported), else None."""
    if not outside(name):
        if name in known(package):
            return None
        return Problem(where, f"there is no '{name}' in mcit.{package}", suggestion(name, known(package)))
    place, _ = _split(name)
    if place.endswith(".py"):
        return None if Path(place).is_file() else Problem(where, f"there is no file {place}", "check the path")
    try:
        found = importlib.util.find_spec(place) is not None
    except (ImportError, ValueError):
        found = False
    return None if found else Problem(where, f"module '{place}' cannot be imported", _INSTALL)


_INSTALL = "put its folder on PYTHONPATH, or install it"


def part_of(package: str, name: str) -> Any:
    """The module ``mcit.<package>.<name>``; of code from elsewhere the module, or what ``:`` names in it.

    Raises ConfigError when there is none, or importing it fails.
    """
    problem = missing(package, name, where=package)
    if problem:
        raise ConfigError(problem.what, where=problem.where, fix=problem.fix)
    if not outside(name):
        return importlib.import_module(f"mcit.{package}.{name}")
    place, attribute = _split(name)
    module = _imported(place, package)
    if not attribute:
        return module
    if not hasattr(module, attribute):
        names = [n for n in vars(module) if not n.startswith("_")]
        raise ConfigError(f"{place} has no '{attribute}'", where=package, fix=suggestion(attribute, names))
    return getattr(module, attribute)


def source_digest(part: Any) -> str:
    """SHA-256 of the files that a class, function or module is written in: its own, and those of its package (or packages
    below) that it imports, directly or by way of others; empty for one that no file holds."""
    module = part if isinstance(part, ModuleType) else sys.modules.get(part.__module__)
    files = _sources(module) if module else {}
    if len(files) < 2:
        return next(iter(files.values()), "")
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _sources(module: ModuleType) -> dict[str, str]:
    """SHA-256 of a module's file and of those it imports from its package and below, by name; without importing them."""
    package = module.__name__.rpartition(".")[0]
    digests: dict[str, str] = {}
    waiting = [(module.__name__, getattr(module, "__file__", None))]
    while waiting:
        name, path = waiting.pop()
        if name in digests or not (path and Path(path).is_file()):
            continue
        digests[name] = sha256_file(path)
        for node in ast.walk(ast.parse(Path(path).read_bytes())) if package else ():
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            waiting += [(n, _file_of(n)) for n in names if n.startswith(f"{package}.")]
    return digests


def _file_of(name: str) -> str | None:
    """The file of a module below one that is imported; None for what is no module."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    return spec.origin if spec else None


def class_of(package: str, name: str, *, base: type) -> type[Any]:
    """The one public subclass of `base` in the named module, or the class that ``module:Class`` names.

    Raises ConfigError when nothing fits.
    """
    found = part_of(package, name)
    if isinstance(found, ModuleType):
        classes = [
            c
            for c in vars(found).values()
            if isinstance(c, type) and issubclass(c, base) and c is not base and c.__module__ == found.__name__
        ]
        if len(classes) != 1:
            fix = f"name one: {name}:<class>" if outside(name) else "split the file"
            raise ConfigError(f"{name} must hold exactly one {base.__name__}", where=package, fix=fix)
        return classes[0]
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"{name} is not a {base.__name__}", where=package, fix="name a class that inherits from it")
    return found


def anchored(value: Any, folder: Path) -> Any:
    """A config with the relative paths of plug-ins (``./…py``, ``./…yaml`` under the keys of NAMING) below `folder`."""
    if isinstance(value, dict):
        return {k: _anchor(v, folder) if k in NAMING else anchored(v, folder) for k, v in value.items()}
    return [anchored(item, folder) for item in value] if isinstance(value, list) else value


NAMING = frozenset({"name", "use", "family", "filters", "generate", "generator", "router", "gate"})
"""Keys of configs and recipes that name a plug-in."""
_RELATIVE = re.compile(r"^\.{1,2}/.*\.(?:py(?::\w+)?|ya?ml)$")


def _anchor(value: Any, folder: Path) -> Any:
    if isinstance(value, str):
        return str((folder / value).resolve()) if _RELATIVE.match(value) else value
    return [_anchor(item, folder) for item in value] if isinstance(value, list) else anchored(value, folder)


def _split(name: str) -> tuple[str, str]:
    """Module or file, and what is named in it."""
    if name.endswith(".py"):
        return name, ""
    place, _, attribute = name.rpartition(":")
    return place, attribute


def _imported(place: str, package: str) -> ModuleType:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        path = Path(place).resolve()
        name = f"mcit_file_{path.stem}_{sha256_bytes(str(path).encode())[:12]}"
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, path)
            if spec is None or spec.loader is None:
                raise ImportError("is no Python file")
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[name]
                raise
        return sys.modules[name]
    except McitError:
        raise
    except Exception as error:
        what = f"{place} cannot be imported: {type(error).__name__}: {error}"
        raise ConfigError(what, where=package, fix="import it in Python to see where it fails") from error
