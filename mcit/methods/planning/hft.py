"""What a plan must meet for HFT: masks that fit what trains, schedules that can follow earlier stages."""

from __future__ import annotations

from typing import Any

from mcit.core import lookup
from mcit.core.errors import Problem
from mcit.core.types import WRITES, Plan, Stage
from mcit.methods.base import Method
from mcit.methods.compose import make

ENTRIES = frozenset({"row", "element"})
"""Selections inside a tensor, by masks."""
_WRITES = WRITES - {"step:passes"}
"""What changes weights to stay; of those with passes of their own only `refresh` does not take its change back."""


def hft_problems(config: Any, stage: Stage, plan: Plan, *, name: str) -> list[Problem]:
    """Masks inside LoRA pairs or the tower, schedules that cannot follow; notes on what freezes."""
    where = f"stages[{stage.index - 1}].methods ({name})"
    found: list[tuple[str, str]] = []
    if config.selection in ENTRIES and stage.adapter.kind != "none":
        fix = "use selection: category, which freezes whole pairs, or adapter.kind: none"
        found.append((f"selection: {config.selection} would split LoRA pairs", fix))
    if config.selection in ENTRIES and "tower" in stage.adapter.also_train:
        what = f"selection: {config.selection} covers the decoder only, but the tower trains"
        found.append((what, "remove 'tower' from adapter.also_train"))
    found += _rewritten(config, stage)
    found += _follows(config, stage, plan, name)
    return [Problem(where, what, fix) for what, fix in found] + _notes(config, stage, where)


def _rewritten(config: Any, stage: Stage) -> list[tuple[str, str]]:
    """Methods that change weights outside the optimiser's step, where only the step's writes are undone."""
    if config.selection not in ENTRIES:
        return []
    others = [make(spec) for spec in stage.methods if spec.name != "hft"]
    writers = [m.name for m in others if m.claims.slots & _WRITES or m.name == "refresh"]
    what = "selection: {} keeps entries in the optimiser's step alone, and '{}' changes weights beside it"
    fix = "use selection: category, layer or model, or give that method a stage of its own"
    return [(what.format(config.selection, writer), fix) for writer in writers]


def _follows(config: Any, stage: Stage, plan: Plan, name: str) -> list[tuple[str, str]]:
    mine = [(s, m.config) for s in plan.stages if s.index < stage.index for m in s.methods if m.name == name]
    if not mine or config.schedule == "independent":
        return []
    before, then = mine[0 if config.schedule == "fixed" else -1]
    says = f"schedule: {config.schedule} follows stage {before.name}"
    if then.selection != config.selection and {then.selection, config.selection} & ENTRIES:
        what = f"{says}, which has selection: {then.selection}, not {config.selection}"
        return [(what, "use one selection, or schedule: independent")]
    if config.schedule == "fixed" and _trains(before) != _trains(stage):
        what = f"{says}, which trains other adapter targets, so nothing might be left to train"
        return [(what, "use the same adapter kind and targets, or schedule: independent")]
    return []


def _notes(config: Any, stage: Stage, where: str) -> list[Problem]:
    notes = []
    if stage.adapter.kind == "none" and "embeddings" not in stage.adapter.also_train:
        what = "the paper also trains embeddings and head, which are frozen here"
        notes.append(Problem(where, what, "add embeddings (and head, unless tied) to adapter.also_train", "note"))
    for spec in stage.methods:
        cls = lookup.class_of("methods", spec.name, base=Method)
        if cls.weight_penalty is not Method.weight_penalty and config.selection not in ENTRIES:
            what = f"{spec.name}: half of the decoder is frozen by hft in this stage"
            notes.append(Problem(where, what, "", "note"))
    return notes


def _trains(stage: Stage) -> tuple[Any, ...]:
    targets = stage.adapter.targets
    names = sorted([targets] if isinstance(targets, str) else targets)
    return (stage.adapter.kind, names if stage.adapter.kind != "none" else [])
