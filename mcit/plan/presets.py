"""Files of settings that a config names by ``use``: one method's, or a list of methods that belong together.

Of a list a setting given beside ``use`` goes to every method that the file states it for, and settings below a method's name to
that method.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcit.core import lookup
from mcit.core.config import load_yaml, suggestion
from mcit.core.errors import ConfigError, Problem
from mcit.core.paths import shipped


def preset_file(name: object) -> Path:
    """The shipped file of this name, there or not."""
    return shipped("configs") / "methods" / f"{name}.yaml"


def read_preset(path: Path) -> dict[str, Any]:
    """``name`` and settings, or ``methods``. Raises ConfigError for a file that holds neither."""
    found = lookup.anchored(load_yaml(path), path.parent)
    members = found.get("methods", [found]) if isinstance(found, dict) else None
    if not isinstance(members, list) or not members or not all(isinstance(m, dict) and "name" in m for m in members):
        fix = "write name: and its settings, or methods: with a list of such"
        raise ConfigError("holds no settings of a method", where=str(path), fix=fix)
    return dict(found)


def expanded(content: Mapping[str, Any], given: Mapping[str, Any], where: str) -> tuple[list[Any], list[Problem]]:
    """The methods of a preset with the settings given beside ``use``; keys that are nobody's become problems."""
    if "methods" not in content:
        return [{**content, **given}], []
    members = [dict(member) for member in content["methods"]]
    problems = []
    for key, value in given.items():
        named = [member for member in members if member["name"] == key]
        if named and isinstance(value, Mapping):
            named[0].update(value)
            continue
        holders = [member for member in members if key in member and key != "name"]
        for member in holders:
            member[key] = value
        if not holders:
            known = {name for member in members for name in member} - {"name"} | {member["name"] for member in members}
            problems.append(Problem(f"{where}.{key}", "unknown key of this preset", suggestion(key, known)))
    return members, problems
