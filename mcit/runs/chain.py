"""The ledger as a chain: every line is what was written, and names the line that it was written after."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mcit.core.errors import Problem, StateError
from mcit.core.files import parse_json, read_bytes
from mcit.core.records import Event
from mcit.core.stored import sealed_line, unsealed, valid
from mcit.core.types import JsonDict
from mcit.runs.ledger import chained

_FIX = "restore the ledger from a copy; what was done since then is in none of its whole lines"


@dataclass(frozen=True)
class Chain:
    """A ledger read strictly, byte for byte."""

    lines: list[bytes] = field(default_factory=list)
    events: list[JsonDict | None] = field(default_factory=list)
    """Of each line; None for one that was changed."""
    problems: list[Problem] = field(default_factory=list)
    """Each with the number of its line, from 1."""

    @property
    def run(self) -> str:
        """Id of the run; empty where the line of its creation is not there."""
        return next((str(e["id"]) for e in self.events if e and e["event"] == "created" and "id" in e), "")

    @property
    def whole(self) -> list[JsonDict]:
        """Events of the lines that are as they were written."""
        return [event for event in self.events if event is not None]


def read_chain(path: Path) -> Chain:
    """Every line with what is wrong with it. Raises StateError for a file that is missing or cannot be read.

    A changed line is named, unless it was given a new checksum and is the last one: nothing was written after it yet. Then, as
    for lines cut off at the end, certificates and signatures that were made after it tell.
    """
    *lines, rest = read_bytes(path).split(b"\n")
    events = [_event(line) for line in lines]
    problems = []
    for k, event in enumerate(events):
        if event is None:
            problems.append(Problem(f"{path}:{k + 1}", "is not the line that was written", _FIX))
        elif event.get("previous") is None:
            what = "is chained to no line: an older mcit wrote it, or somebody else did"
            problems.append(Problem(f"{path}:{k + 1}", what, _FIX))
        elif event["previous"] != chained(lines[k - 1] if k else b"") and (not k or events[k - 1] is not None):
            what = f"is not the line after which line {k + 1} was written: it was changed, or lines beside it are gone"
            problems.append(Problem(f"{path}:{max(k, 1)}", what, _FIX))
    if rest:
        what = "has no end: a kill tore it, or it was changed"
        problems.append(
            Problem(f"{path}:{len(lines) + 1}", what, "after a kill the next command on the run cuts it off")
        )
    return Chain(lines, events, problems)


def _event(line: bytes) -> JsonDict | None:
    """The event of a line that is byte for byte what the ledger writes."""
    try:
        record = unsealed(parse_json(line, where=""))
        return valid(Event, record, where="") if record and sealed_line(record).encode() == line else None
    except StateError:
        return None
