"""Filters of a config: made with checked settings, and what of them is part of the identity of predictions. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mcit.core import lookup
from mcit.core.config import parse
from mcit.core.errors import ConfigError, Problem
from mcit.core.files import digest_of, sha256_file
from mcit.core.types import JsonDict
from mcit.evals.filters.base import Filter

Spec = str | Mapping[str, Any]
"""A filter's name, or ``{use: name, …}`` with its settings."""


def name_of(spec: Spec) -> str:
    """The name in a spec; empty if it has none."""
    return spec if isinstance(spec, str) else str(spec.get("use", ""))


def load_filters(specs: Sequence[Spec]) -> list[Filter]:
    """Filters in listed order. Raises ConfigError for one that does not exist, or for its settings."""
    out, problems = [], []
    for i, spec in enumerate(specs):
        cls = lookup.class_of("evals.filters", name_of(spec), base=Filter)
        given = {} if isinstance(spec, str) else {k: v for k, v in spec.items() if k != "use"}
        settings, found = parse(cls.Config, given, where=f"eval.filters[{i}]")
        problems += found
        if settings is not None:
            out.append(cls(settings))
    if problems:
        raise ConfigError.of(problems)
    return out


def filter_problems(specs: Sequence[Spec]) -> list[Problem]:
    """Names and settings that cannot be used."""
    problems = []
    for i, spec in enumerate(specs):
        where = f"eval.filters[{i}]"
        if not name_of(spec):
            problems.append(Problem(where, "has no use", "write {use: …} and the filter's settings"))
            continue
        found = lookup.missing("evals.filters", name_of(spec), where=where)
        problems += [found] if found else []
    if not problems:
        try:
            load_filters(specs)
        except ConfigError as error:
            problems += error.problems
    return problems


def identity(specs: Sequence[Spec], chain: Sequence[Filter], state: Mapping[str, Path]) -> list[JsonDict]:
    """Of each filter what its answers depend on: settings, version, source, and the state of methods that it reads."""
    return [
        {
            "use": name_of(spec),
            "config": one.config.model_dump(mode="json"),
            "version": one.version,
            "source": lookup.source_digest(type(one)),
            "state": {name: _digest(state[name]) for name in one.reads if name in state},
        }
        for spec, one in zip(specs, chain, strict=True)
    ]


def _digest(folder: Path) -> str:
    return digest_of([[p.name, sha256_file(p)] for p in sorted(folder.iterdir()) if p.is_file()])
