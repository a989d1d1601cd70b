"""What the gates of a run found and who decided, from their records. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mcit.core.types import JsonDict
from mcit.runs.gates import read_gate
from mcit.runs.layout import RunLayout
from mcit.runs.run import read_plan

HEAD = ("stage", "threshold", "limit", "found", "rows", "verdict")
"""Titles of the columns of `threshold_rows`."""


def read_gates(run: Path) -> list[JsonDict]:
    """Records of the stages that were judged, in order. Raises StateError for a damaged one."""
    layout = RunLayout(run)
    found = [read_gate(layout, stage["folder"]) for stage in read_plan(layout)["stages"]]
    return [record for record in found if record is not None]


def threshold_rows(records: list[JsonDict]) -> list[list[str]]:
    """One row per threshold: what was asked, what was found with its 95 % interval."""
    return [
        [
            record["stage"],
            result["metric"] + (f" of {result['task']}" if result["task"] else ""),
            _limit(result),
            _found(result),
            str(result["n"]),
            result["verdict"],
        ]
        for record in records
        for result in record["results"]
    ]


def decision_lines(records: list[JsonDict]) -> list[str]:
    """One sentence per stage."""
    return [
        f"{r['stage']}: {r['verdict']}; {r['decision']} by {r['by']} at {r['time']}; gate file sha256 {r['gate_sha256'][:12]}…"
        + (f"; ended at step {r['ended']['step']}: {r['ended']['reason']}" if r["ended"] else "")
        for r in records
    ]


def _limit(result: JsonDict) -> str:
    least = result["at_least"] is not None
    return f"{'at least' if least else 'at most'} {result['at_least' if least else 'at_most']:g} {result['unit']}"


def _found(result: JsonDict) -> Any:
    if result["estimate"] is None:
        return "–"
    low, high = result["interval"]
    return f"{result['estimate']:.3f} ({low:.3f} to {high:.3f})"
