"""Append-only diary of a run: one JSON line per event. It tells people what happened; no weights depend on it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from mcit.core.files import append_line, canonical_json, read_json_lines
from mcit.core.types import JsonDict

Event = Literal[
    "created",
    "stage_started",
    "checkpoint",
    "interrupted",
    "resumed",
    "stage_committed",
    "eval",
    "export",
    "problem",
    "accepted_changes",
    "layout",
    "rollback",
    "extended",
    "branched",
]


class Ledger:
    """Writes and reads ``ledger.jsonl``."""

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        """Without `writes` (a rank other than 0) `append` does nothing."""
        self.path, self._writes = path, writes

    def append(self, event: Event, **fields: Any) -> None:
        """Add one line with the time, flushed to disk. Raises StateError when the disk is full or read-only."""
        if not self._writes:
            return
        now = datetime.now(UTC).isoformat(timespec="seconds")
        append_line(self.path, canonical_json({"time": now, "event": event, **fields}))

    def events(self, event: Event | None = None) -> list[JsonDict]:
        """All lines in order, or those of one kind; lines torn by a kill are left out, a missing file is empty."""
        found = [line for line in read_json_lines(self.path) if isinstance(line, dict) and "event" in line]
        return [line for line in found if event in (None, line["event"])]
