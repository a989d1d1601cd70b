"""The file of a model's answers: one JSON line per attempt, appended, never rewritten.

Line: ``{"id", "style", "source", "status": "accepted"|"refused", "content": [{"distractors", "text"}, …] or "reasons":
[…], "reply" (cut), "generator": {"backend", "model", "prompt", "seed", "attempt"}, "time"}``; `content` has an entry
for each question of the row. ``time`` is for people and part of no identity.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mcit.core.errors import DataError, Problem
from mcit.core.files import NOT_JSON, digest_of
from mcit.core.types import JsonDict, Row
from mcit.data.asd.assemble import Content
from mcit.data.asd.exchange import Exchange, source_of

_REFUSED_SHOWN = 10


@dataclass(frozen=True)
class Entry:
    """One attempt at one row in one style."""

    id: str
    style: str
    source: str
    """Of the row as it was asked about; see `source_of`."""
    accepted: bool
    content: tuple[Content, ...]
    reasons: tuple[str, ...]
    generator: JsonDict

    @property
    def name(self) -> str:
        """Backend, model and prompt version, for the trace of a row."""
        made = self.generator
        attempt = made.get("attempt", "?")
        return f"{made.get('backend', '?')}:{made.get('model', '?')}:prompt-{made.get('prompt', '?')}:attempt-{attempt}"


@dataclass(frozen=True)
class Answers:
    """All attempts of a file, in its order."""

    path: Path
    entries: tuple[Entry, ...]
    torn: int
    """Lines cut off by a kill; what they held was asked again."""

    @property
    def digest(self) -> str:
        """Depends on what was accepted or refused, not on time or the order of lines."""
        return digest_of(sorted(digest_of(entry_json(entry)) for entry in self.entries))

    def of(self, row: Row, style: str) -> list[Entry]:
        """Attempts at the row as it is now, oldest first."""
        source = source_of(row)
        return [e for e in self._by_key.get((row.id, style), ()) if e.source == source]

    def stale(self, row: Row, style: str) -> bool:
        """Whether answers exist for another version of the row only."""
        return bool(self._by_key.get((row.id, style))) and not self.of(row, style)

    @cached_property
    def _by_key(self) -> Mapping[tuple[str, str], list[Entry]]:
        found: dict[tuple[str, str], list[Entry]] = {}
        for entry in self.entries:
            found.setdefault((entry.id, entry.style), []).append(entry)
        return found


def load_answers(path: Path) -> Answers:
    """Read a file of answers. Raises DataError with every line that is JSON but no answer."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(
            f"the file of answers cannot be read ({error.strerror})",
            where=str(path),
            fix="write it with scripts/asd_generate.py generate, or leave 'answers' out of the recipe",
        ) from None
    entries, problems, torn = [], [], 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except NOT_JSON:
            torn += 1
            continue
        try:
            entries.append(_entry(value))
        except (KeyError, TypeError, ValueError, AttributeError):
            problems.append(Problem(f"{path}:{number}", "is no line of answers", "remove the line"))
    if problems:
        raise DataError.of(problems[:_REFUSED_SHOWN])
    return Answers(path, tuple(entries), torn)


def entry_json(entry: Entry) -> JsonDict:
    """The line of an entry, without its time."""
    return {
        "id": entry.id,
        "style": entry.style,
        "source": entry.source,
        "status": "accepted" if entry.accepted else "refused",
        "content": [{"distractors": list(item.distractors), "text": item.text} for item in entry.content],
        "reasons": list(entry.reasons),
        "generator": dict(entry.generator),
    }


def content_of(entry: Entry, exchanges: Sequence[Exchange]) -> list[Content]:
    """What an accepted answer contributes to each question; a box is turned into a question about its region."""
    return [
        Content(item.distractors, item.text, question=region_question(exchange.answer))
        if item.text and exchange.is_box
        else item
        for item, exchange in zip(entry.content, exchanges, strict=True)
    ]


def region_question(box: str) -> str:
    """What is asked where the row's own question asks for the box."""
    return f"What is shown in the region {box} of the image?"


def _entry(value: Mapping[str, Any]) -> Entry:
    accepted = {"accepted": True, "refused": False}[value["status"]]
    content = tuple(
        Content(tuple(_texts(item.get("distractors", []))), _text(item.get("text", "")))
        for item in value.get("content", [])
    )
    if accepted and not content:
        raise ValueError
    texts = [_text(value[key]) for key in ("id", "style", "source")]
    reasons = tuple(_texts(value.get("reasons", [])))
    return Entry(texts[0], texts[1], texts[2], accepted, content, reasons, dict(value["generator"]))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _texts(value: Any) -> list[str]:
    return [_text(item) for item in value]
