"""Attacks on forget stages in reports, from a run's files. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mcit.core.errors import StateError
from mcit.core.records import AttackRecord
from mcit.core.stored import read_sealed
from mcit.core.types import JsonDict
from mcit.runs.layout import RunLayout
from mcit.runs.ledger import Ledger
from mcit.runs.run import read_plan

_AGAIN = "make the attack again: answers that it has are kept"
HEAD = ("forgets", "attack", "rows", "Acc_f before", "forgotten", "attacked", "robustness", "controls")
"""Titles of the columns of `attack_rows`."""


def read_attacks(run: Path) -> list[JsonDict]:
    """Records of all attacks, by stage. Raises StateError for one that is damaged, or gone from its folder."""
    layout = RunLayout(run)
    stages = [stage["folder"] for stage in read_plan(layout)["stages"] if stage["forget"]]
    files = [path for stage in stages for path in sorted(layout.attacks(stage).glob("*.json"))]
    for line in Ledger(layout.ledger).standing("attack"):
        path = layout.attacks(str(line.get("stage"))) / f"{line.get('kind')}.json"
        if path.parent.is_dir() and not path.is_file():
            raise StateError("is gone, and the ledger says that the attack was made", where=str(path), fix=_AGAIN)
    return [read_sealed(path, AttackRecord) for path in files]


def attack_rows(records: Sequence[JsonDict], show: Callable[[Any], str]) -> list[list[str]]:
    """Rows under `HEAD`; accuracies in percent."""
    return [
        [
            record["stage"],
            record["kind"] if record["possible"] else f"{record['kind']}: nothing to take off",
            str(entry["rows"]),
            show(record["before"]),
            show(record["forgotten"]),
            show(entry["accuracy"]),
            show(entry["robustness"]),
            "; ".join(f"{name} {show(_of(found, entry['rows']))}" for name, found in record["controls"].items()) or "–",
        ]
        for record in records
        for entry in record["results"]
    ]


def _of(results: Sequence[JsonDict], rows: int) -> float | None:
    return next((entry["accuracy"] for entry in results if entry["rows"] == rows), None)


def attack_lines(records: Sequence[JsonDict]) -> list[str]:
    """The same as sentences."""

    def show(value: Any) -> str:
        return "–" if value is None else f"{value:.2f}"

    lines = []
    for stage, kind, rows, before, forgotten, attacked, robust, controls in attack_rows(records, show):
        lines.append(
            f"{stage}, {kind}, {rows} rows: accuracy {before} % before, {forgotten} % forgotten, {attacked} % attacked; "
            f"robustness {robust}; controls {controls}"
        )
    return lines
