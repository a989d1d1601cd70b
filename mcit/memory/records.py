"""What the files of a memory's folder must hold."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from mcit.core.records import Count, Entry, Folder, Record


class MemoryEntry(Record):
    """A line of ``entries-*.jsonl``: an exchange, its turn, and the turn that it was recalled for last."""

    what = "an entry of a memory"
    fix = "restore the folder from a copy, or give another folder for a new memory"
    turn: Count
    question: str
    answer: str
    recalled: Count | None


class MemoryTurn(Record):
    """A line of ``turns.jsonl``: a turn since the last save, and places of the entries that were shown with it."""

    what = "a turn of a memory"
    turn: Count
    question: str
    answer: str
    recalled: list[Count]


class MemoryRecord(Record):
    """``memory.json``: whose vectors they are, summaries, settings, and the files that belong to it."""

    what = "the record of a memory"
    fix = "restore the folder from a copy, or give another folder for a new memory"
    encoder: str
    dimension: Annotated[int, Field(ge=1)]
    turns: Count
    running: str
    overview: str
    settings: dict[str, Any]
    files: dict[Folder, Entry]

    @model_validator(mode="after")
    def _has_both(self) -> Self:
        if sorted(name.rpartition(".")[2] for name in self.files) != ["jsonl", "safetensors"]:
            raise ValueError("names no entries or no vectors")
        return self
