"""Append-only diary of a run: one JSON line per event, each with its checksum and that of the line before it. It tells people
what happened; no weights depend on it. A line that was damaged is left out and told; what was changed or removed since breaks
the chain, which `mcit audit` follows (`mcit.runs.chain`).
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from mcit.core.files import append_line, cut_torn_end, explained, sha256_bytes
from mcit.core.records import Event as EventRecord
from mcit.core.stored import read_sealed_lines, sealed_line
from mcit.core.types import JsonDict

Event = Literal[
    "created",
    "stage_started",
    "checkpoint",
    "interrupted",
    "resumed",
    "stage_committed",
    "eval",
    "kit",
    "gold",
    "attack",
    "forgotten",
    "export",
    "problem",
    "accepted_changes",
    "layout",
    "rollback",
    "extended",
    "branched",
    "pushed",
    "gate",
    "promoted",
    "rejected",
    "replaced",
    "certified",
    "signed",
]
NOTHING = "0" * 64
"""What the first line is chained to."""


def chained(line: bytes) -> str:
    """What the line after `line` says of it: the sha256 of its bytes without the line's end."""
    return sha256_bytes(line) if line else NOTHING


class Ledger:
    """Writes and reads ``ledger.jsonl``."""

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        """Without `writes` (a rank other than 0) `append` does nothing."""
        self.path, self._writes = path, writes

    def append(self, event: Event, **fields: Any) -> None:
        """Add one line with the time, flushed to disk; the line of a run's creation gets an id that no other run has.

        Raises StateError when the disk is full or read-only.
        """
        if not self._writes:
            return
        line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": event, **fields}
        if event == "created":
            line["id"] = secrets.token_hex(16)
        append_line(self.path, lambda last: sealed_line({**line, "previous": chained(last)}))

    def events(self, event: Event | None = None) -> list[JsonDict]:
        """All whole lines in order, or those of one kind; a missing file is empty."""
        return [line for line in self.read()[0] if event in (None, line["event"])]

    def standing(self, event: Event) -> list[JsonDict]:
        """Lines of one kind after the last rollback: what they tell of was not removed by one."""
        events = self.events()
        last = max((k for k, line in enumerate(events) if line["event"] == "rollback"), default=-1)
        return [line for line in events[last + 1 :] if line["event"] == event]

    def read(self) -> tuple[list[JsonDict], list[int]]:
        """All whole lines in order, and the numbers (from 1) of damaged ones; a last line torn by a kill is in neither."""
        return read_sealed_lines(self.path, EventRecord)

    def cut_torn(self) -> list[str]:
        """Cut off a last line that was torn; returns that it was, in words."""
        if self._writes and self.path.is_file():
            with explained(self.path), open(self.path, "a+b") as file:
                if cut_torn_end(file):
                    return ["the last line was torn and is cut off"]
        return []

    def recover(self) -> list[str]:
        """Cut off a last line that was torn, begin anew where the beginning is gone; returns what is wrong, in words.

        Damaged lines stay as they are.
        """
        wrong = self.cut_torn()
        events, damaged = self.read()
        if damaged:
            wrong.append(f"damaged lines are left out: {', '.join(map(str, damaged))}")
        if not any(event["event"] == "created" for event in events):
            wrong.append("begins without the creation of the run: what was written before is lost")
            self.append("created", recovered=True)
        return wrong
