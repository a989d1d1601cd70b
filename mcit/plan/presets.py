"""Files of settings that a config names by ``use``: one method's, a list of methods that belong together, or an adapter's.

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


def adapter_settings(given: Any, where: str) -> tuple[Any, list[Problem]]:
    """A stage's ``adapter`` with the file that it names by ``use`` laid under it; anything else as it is."""
    if not isinstance(given, Mapping) or "use" not in given:
        return given, []
    own = {key: value for key, value in given.items() if key != "use"}
    name = str(given["use"])
    path = Path(name) if name.endswith((".yaml", ".yml")) else preset_file(name)
    found = load_yaml(path) if path.is_file() else {}
    if not isinstance(found, dict) or not isinstance(found.get("adapter"), dict):
        shown = name if path == Path(name) else f"configs/methods/{name}.yaml"
        what = f"{shown} holds no adapter" if path.is_file() else f"there is no {shown}"
        return own, [Problem(f"{where}.use", what, "name a file with adapter: and its settings, such as moe_lora")]
    return {**found["adapter"], **own}, []


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
