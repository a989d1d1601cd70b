"""``stages: {generate: …}`` into a list of stages. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mcit.core import lookup
from mcit.core.config import parse
from mcit.core.errors import ConfigError, Problem
from mcit.core.types import JsonDict
from mcit.sequences.base import StageSequence


def expanded(given: Mapping[str, Any], *, seed: Any) -> tuple[list[JsonDict], list[Problem]]:
    """The stages that a sequence makes of its settings and the run's seed, or every problem of them."""
    name = given.get("generate")
    if not isinstance(name, str):
        fix = "list stages, or write {generate: <name>, …} with one of " + ", ".join(lookup.known("sequences"))
        return [], [Problem("stages.generate", "is required where stages is a mapping", fix)]
    problem = lookup.missing("sequences", name, where="stages.generate")
    if problem:
        return [], [problem]
    if not isinstance(seed, int) or isinstance(seed, bool):
        return [], [Problem("seed", f"is no number (got {seed!r})", "write a whole number")]
    cls = lookup.class_of("sequences", name, base=StageSequence)
    settings, problems = parse(cls.Config, {k: v for k, v in given.items() if k != "generate"}, where="stages")
    if settings is None:
        return [], problems
    try:
        stages = cls(settings).stages(seed)
    except ConfigError as error:
        return [], [Problem(f"stages ({name})", p.what, p.fix) for p in error.problems]
    if not stages or not all(isinstance(stage, Mapping) for stage in stages):
        return [], [Problem("stages.generate", f"'{name}' makes no stages", "change its settings")]
    return [dict(stage) for stage in stages], []
