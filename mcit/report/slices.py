"""The memory report: what each stage did on target, neighbourhood and retention, from score files. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mcit.core.types import JsonDict
from mcit.evals.slices import slice_report
from mcit.runs.gates import read_gate, rejected_of, slices_of
from mcit.runs.layout import RunLayout
from mcit.runs.run import read_plan

_MEASURES = ("success", "generalisation", "locality")
HEAD = ("stage", "success", "generalisation", "locality", "drawdown, points", "drawdown, % of before", "rows kept")
"""Titles of the columns of `slice_rows`."""


def read_slices(run: Path, *, mode: str) -> list[JsonDict]:
    """One entry per stage that was scored. Raises StateError for damaged scores."""
    layout, out, below = RunLayout(run), [], 0
    stages = read_plan(layout)["stages"]
    without = rejected_of(layout, [stage["folder"] for stage in stages])
    for stage in stages:
        gate = read_gate(layout, stage["folder"])
        if gate is not None and gate["decision"] != "promoted":
            continue
        before, after, below = layout.evals(below), layout.evals(stage["index"]), stage["index"]
        found = slice_report(before, after, slices_of(stage, stages, without), mode=mode)
        if found.success or found.retention:
            out.append({"stage": stage["folder"], **found.json()})
    return out


def slice_rows(entries: list[JsonDict]) -> list[list[str]]:
    """Rows under `HEAD`: estimates with 95 % intervals; shares in [0, 1]."""
    return [
        [
            e["stage"],
            *(measure_text(e[name], ".3f") for name in _MEASURES),
            *(measure_text(e[name], ".2f") for name in ("drawdown_points", "drawdown_relative")),
            str(e["drawdown_points"]["n"]) if e["drawdown_points"] else "–",
        ]
        for e in entries
    ]


def kept_rows(entries: list[JsonDict], show: Any) -> list[list[str]]:
    """Stage, kept task, score before and after in percent, drop with interval, p and p after Holm's correction."""
    return [
        [
            e["stage"],
            one["task"],
            show(one["before"]),
            show(one["after"]),
            measure_text({"estimate": one["before"] - one["after"], "interval": one["interval"]}, ".2f"),
            f"{one['p']:.4f}",
            f"{one['p_holm']:.4f}",
        ]
        for e in entries
        for one in e["retention"]
    ]


def measure_text(measure: JsonDict | None, form: str) -> str:
    """Estimate and interval; a dash where nothing was measured."""
    if measure is None:
        return "–"
    low, high = measure["interval"]
    return f"{measure['estimate']:{form}} ({low:{form}} to {high:{form}})"
