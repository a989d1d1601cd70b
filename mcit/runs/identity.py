"""What makes two starts the same run, and how a difference is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mcit.core.schema import NOT_IDENTITY
from mcit.core.types import JsonDict

CORE_PACKAGES = ("torch", "transformers", "peft", "accelerate", "mcit")
"""Their minor versions belong to a run's identity."""
FROZEN = "gate of "
"""What keys begin with whose change nobody can accept: thresholds hold from before anything trains."""
_ABSENT = "not set"

Changes = dict[str, tuple[Any, Any]]
"""Key to (old, new)."""


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested dicts and lists by ``a.b[0].c``; an empty container is a leaf."""
    if isinstance(value, Mapping) and value:
        parts = {f"{prefix}.{key}" if prefix else str(key): child for key, child in value.items()}
    elif isinstance(value, (list, tuple)) and value:
        parts = {f"{prefix}[{i}]": child for i, child in enumerate(value)}
    else:
        return {prefix: value}
    return {leaf: found for path, child in parts.items() for leaf, found in flatten(child, path).items()}


def differences(old: Any, new: Any) -> Changes:
    """Leaves that differ, by key; a key on one side only is ``not set`` on the other."""
    before, after = flatten(old), flatten(new)
    keys = [*before, *(key for key in after if key not in before)]
    pairs = {key: (before.get(key, _ABSENT), after.get(key, _ABSENT)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def config_changes(old: JsonDict, new: JsonDict) -> Changes:
    """Differing keys of two resolved configs that belong to identity."""
    return {k: pair for k, pair in differences(old, new).items() if _section(k) not in NOT_IDENTITY}


def layout_changes(old: JsonDict, new: JsonDict) -> Changes:
    """Differing keys of two resolved configs that may change between two starts."""
    return {k: pair for k, pair in differences(old, new).items() if _section(k) in NOT_IDENTITY}


def _section(key: str) -> str:
    return key.replace("[", ".").partition(".")[0]


def identity(plan: JsonDict, environment: JsonDict) -> dict[str, Any]:
    """What must be equal at every start of a run besides its config, by key."""
    out: dict[str, Any] = {key: plan.get(key) for key in ("base_sha256", "chat_template_sha256")}
    out.update({f"recipe {name}": digest for name, digest in plan["recipes"].items()})
    for stage in plan["stages"]:
        for method, version in stage["method_state"].items():
            out[f"state version of {method} in {stage['folder']}"] = version
    out.update({f"source of {name}": digest for name, digest in plan.get("sources", {}).items()})
    gates = {stage["folder"]: stage.get("gate") for stage in plan["stages"]}
    out.update({f"{FROZEN}{folder}": gate["sha256"] for folder, gate in gates.items() if gate})
    for package in CORE_PACKAGES:
        out[f"version of {package}"] = minor(environment["versions"].get(package))
    return out


def minor(version: str | None) -> str | None:
    """``2.13.0+cpu`` -> ``2.13``."""
    return None if version is None else ".".join(version.partition("+")[0].split(".")[:2])


def cures(changes: Changes, accept: str) -> list[str]:
    """What to do about each difference: restore it, or `accept` it, which no threshold can be."""
    frozen = "restore the file: thresholds cannot change once the run is there"
    return [frozen if key.startswith(FROZEN) else f"restore it, or {accept}" for key in changes]


def told(changes: Changes) -> list[str]:
    """``key: old -> new`` for people, long checksums cut."""
    return [f"{key}: {short(old)} -> {short(new)}" for key, (old, new) in changes.items()]


def short(value: Any) -> str:
    """A value for people; of a checksum the beginning."""
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 and all(c in "0123456789abcdef" for c in text) else text
