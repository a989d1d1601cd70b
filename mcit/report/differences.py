"""What differs between two runs, by kind, from their files alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcit.core.types import JsonDict
from mcit.report.matrix import read_plan
from mcit.runs.identity import Changes, config_changes, differences, layout_changes, short
from mcit.runs.run import Run

KINDS = ("sequence", "settings", "data", "base", "code", "versions", "hardware", "seeds", "layout")
"""In the order in which they are told; ``layout`` is how steps are computed, which changes no row of any step."""


@dataclass(frozen=True)
class Difference:
    """One thing that is not the same in both runs."""

    kind: str
    what: str
    first: str
    second: str


def run_differences(first: Path, second: Path) -> list[Difference]:
    """Everything that differs, in the order of KINDS. Raises StateError if a folder is no run or its files were changed."""
    plans = [read_plan(root) for root in (first, second)]
    runs = [Run(root) for root in (first, second)]
    configs, environments = [run.config() for run in runs], [run.environment() for run in runs]
    own = [_without(config, "name", "seed", "stages") for config in configs]
    bases = [{key: plan.get(key) for key in ("base_sha256", "chat_template_sha256")} for plan in plans]
    return [
        *_sequence(*plans),
        *_told("settings", config_changes(*own)),
        *_stages(*(_by_name(plan, config) for plan, config in zip(plans, configs, strict=True))),
        *_told("data", differences(*(plan["recipes"] for plan in plans)), "recipe "),
        *_told("base", differences(*bases)),
        *_told("code", differences(*_codes(*plans))),
        *_told("versions", differences(*(_without(found["versions"], "mcit") for found in environments))),
        *_told("hardware", differences(*(_without(found, "versions") for found in environments))),
        *_told("seeds", differences(*({"seed": config["seed"]} for config in configs))),
        *_told("layout", layout_changes(*own)),
    ]


def _sequence(first: JsonDict, second: JsonDict) -> list[Difference]:
    names = [", ".join(stage["name"] for stage in plan["stages"]) for plan in (first, second)]
    return [Difference("sequence", "stages", *names)] if names[0] != names[1] else []


def _codes(first: JsonDict, second: JsonDict) -> list[JsonDict]:
    """Of mcit and of what both runs use: what one of them uses alone differs by its setting, which is told already."""
    both = first["sources"].keys() & second["sources"].keys()
    return [
        {"mcit": plan["code"], **{name: plan["sources"][name] for name in sorted(both)}} for plan in (first, second)
    ]


def _by_name(plan: JsonDict, config: JsonDict) -> dict[str, JsonDict]:
    """Settings by name of the stage, with a count where a name comes back."""
    out: dict[str, JsonDict] = {}
    names = [str(stage["name"]) for stage in plan["stages"]]
    for k, (name, own) in enumerate(zip(names, config["stages"], strict=True)):
        visit = names[: k + 1].count(name)
        out[name if visit == 1 else f"{name} ({visit})"] = _without(own, "name")
    return out


def _stages(first: dict[str, JsonDict], second: dict[str, JsonDict]) -> list[Difference]:
    """Settings of the stages that both runs have; what changed alike in several is told once."""
    grouped: dict[tuple[str, str, str], list[str]] = {}
    both = [name for name in first if name in second]
    for name in both:
        for key, (a, b) in _stage_changes(first[name], second[name]).items():
            grouped.setdefault((key, _text(a), _text(b)), []).append(name)
    out = []
    for (key, a, b), names in grouped.items():
        where = "every stage" if len(names) == len(both) else ", ".join(names)
        out.append(Difference("settings", f"{key} ({where})", a, b))
    return out


def _stage_changes(first: JsonDict, second: JsonDict) -> Changes:
    """Changes of a stage; a method that only one of them has is told by name alone."""
    changes = differences(_without(first, "methods"), _without(second, "methods"))
    a, b = ({method["name"]: _without(method, "name") for method in stage["methods"]} for stage in (first, second))
    for name in {**a, **b}:
        if name not in a or name not in b:
            changes[f"method {name}"] = ("on" if name in a else "off", "on" if name in b else "off")
        else:
            changes |= {f"{name}.{key}": pair for key, pair in differences(a[name], b[name]).items()}
    return changes


def _told(kind: str, changes: Changes, prefix: str = "") -> list[Difference]:
    return [Difference(kind, f"{prefix}{key}", _text(old), _text(new)) for key, (old, new) in changes.items()]


def _without(content: JsonDict, *keys: str) -> JsonDict:
    return {name: value for name, value in content.items() if name not in keys}


def _text(value: Any) -> str:
    return "none" if value is None or value in ([], {}) else short(value)
