"""Predictions on disk: written batch by batch, whole at the end, equal bytes whether or not the process was killed.

While answers come, ``predictions.part.jsonl`` holds one line per batch with its checksum, flushed. A line torn by a kill
or damaged is no batch and is made again; batches are never regrouped, because who shares a batch with whom changes the
last bits of the scores. At the end ``generation.json`` (how the answers were made, and their checksum) and then
``predictions.jsonl`` are written.
Needs no torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mcit.core.errors import StateError
from mcit.core.files import (
    append_line,
    canonical_json,
    digest_of,
    explained,
    parse_json,
    read_bytes,
    sha256_bytes,
    write_bytes,
)
from mcit.core.records import Backend, Generation, PartBatch, PartHead, Prediction
from mcit.core.stored import read_sealed, read_sealed_lines, sealed_line, valid, write_sealed
from mcit.core.types import JsonDict, Row

PREDICTIONS, PART, GENERATION = "predictions.jsonl", "predictions.part.jsonl", "generation.json"
BACKEND = "backend.json"
"""How answers of another backend compare with the own one's."""
_GOLD_KEYS = ("answers", "answer_type", "choices", "box", "size")


def gold_of(row: Row) -> JsonDict:
    """What a scorer may know of a test row."""
    kept = {key: row.meta[key] for key in _GOLD_KEYS if row.meta.get(key) is not None}
    picture = {"image": row.images[0]} if row.images else {}
    return {"answer": row.answer.strip(), "style": row.style, **picture, **kept}


def batches(rows: Sequence[Row], size: int) -> list[list[int]]:
    """Positions of the rows of each batch: rows of one picture together, beside those with equally many and like length.

    A pure function of its arguments: pictures are ordered by (number of images, most characters of a conversation, first
    position), rows of one by (characters, position). A picture's rows are divided where a batch would else be less than
    half full.
    """
    length = [sum(len(turn.text) for turn in row.turns[:-1]) for row in rows]
    shown: dict[Any, list[int]] = {}
    for i, row in enumerate(rows):
        shown.setdefault((row.root, row.images) if row.images else i, []).append(i)
    order = sorted(shown.values(), key=lambda own: (len(rows[own[0]].images), max(length[i] for i in own), own[0]))
    out: list[list[int]] = [[]]
    for own in order:
        if len(own) <= size < len(out[-1]) + len(own) and 2 * len(out[-1]) >= size:
            out.append([])
        for i in sorted(own, key=lambda i: (length[i], i)):
            if len(out[-1]) == size:
                out.append([])
            out[-1].append(i)
    return [batch for batch in out if batch]


class PartFile:
    """Batches finished so far. A part made for another identity is dropped."""

    def __init__(self, folder: Path, groups: Sequence[Sequence[int]], *, identity: str) -> None:
        self._path = folder / PART
        self._groups = groups
        self._identity = identity
        lines, _ = read_sealed_lines(self._path, PartHead, PartBatch)
        if not lines or lines[0] != {"identity": identity}:
            if self._path.exists():
                self._path.unlink()
            lines = []
        self._done = {line["batch"]: line["rows"] for line in lines if self._whole(line)}
        self._started = bool(lines)

    def _whole(self, line: JsonDict) -> bool:
        known = "batch" in line and line["batch"] < len(self._groups)
        return known and [row["index"] for row in line["rows"]] == list(self._groups[line["batch"]])

    @property
    def missing(self) -> list[int]:
        """Numbers of the batches still to make, in order."""
        return [k for k in range(len(self._groups)) if k not in self._done]

    def add(self, number: int, rows: Sequence[JsonDict]) -> None:
        """Append one finished batch and flush it."""
        if not self._started:
            append_line(self._path, sealed_line({"identity": self._identity}))
            self._started = True
        append_line(self._path, sealed_line({"batch": number, "rows": list(rows)}))
        self._done[number] = list(rows)

    def rows(self) -> Iterator[JsonDict]:
        """All predictions in row order."""
        yield from sorted((row for rows in self._done.values() for row in rows), key=lambda row: row["index"])

    def remove(self) -> None:
        """Delete the part file; it is no longer needed."""
        with contextlib.suppress(FileNotFoundError), explained(self._path):
            self._path.unlink()


def write_predictions(folder: Path, rows: Sequence[JsonDict], settings: Mapping[str, Any]) -> None:
    """Write ``generation.json`` and then ``predictions.jsonl``; both exist and agree, or the answers are made again."""
    data = "".join(canonical_json(row) + "\n" for row in rows).encode()
    record = {"settings": dict(settings), "rows": len(rows), "sha256": sha256_bytes(data)}
    write_sealed(folder / GENERATION, record | ({"chosen": chosen(rows)} if "options" in settings else {}))
    write_bytes(folder / PREDICTIONS, data)


def chosen(rows: Sequence[Mapping[str, Any]]) -> int:
    """How many answers were chosen among options."""
    return sum(row.get("options") is not None for row in rows)


def refused(rows: Sequence[Mapping[str, Any]]) -> int:
    """How many answers were written because an option of their row cannot be an answer of the model."""
    return sum(row.get("refused_option") is not None for row in rows)


def made_with(folder: Path) -> JsonDict | None:
    """The settings of finished predictions; None if there are none or if they do not belong to their record."""
    if not (folder / PREDICTIONS).is_file() or not (folder / GENERATION).is_file():
        return None
    try:
        return _checked(folder)[0]["settings"]
    except StateError:
        return None


def damage(folder: Path) -> StateError | None:
    """What is wrong with predictions that were finished; None if they are whole, unfinished or not there."""
    if not (folder / PREDICTIONS).is_file():
        return None
    try:
        _checked(folder)
    except StateError as error:
        return error
    return None


def recorded_settings(folder: Path) -> JsonDict:
    """The settings on record. Raises StateError if there is no record, or a damaged one."""
    settings: JsonDict = read_sealed(folder / GENERATION, Generation)["settings"]
    return settings


def read_predictions(folder: Path) -> list[JsonDict]:
    """Finished predictions in row order.

    Raises StateError if they are missing, or if their checksum is not the one on record.
    """
    path = folder / PREDICTIONS
    if not path.is_file():
        raise StateError("there are no finished predictions", where=str(path), fix="run `mcit eval` without --rescore")
    _, data = _checked(folder)
    lines = data.split(b"\n")[:-1]
    return [
        valid(Prediction, parse_json(line, where=f"{path}:{number}"), where=f"{path}:{number}")
        for number, line in enumerate(lines, start=1)
    ]


def stored_lines(folder: Path, *, kind: str) -> list[JsonDict]:
    """Finished lines of another kind than answers. Raises StateError when there are none of that kind, or damaged ones."""
    if not (folder / PREDICTIONS).is_file():
        raise StateError(f"there is no finished {kind}", where=str(folder), fix="run what makes it")
    record, data = _checked(folder)
    if record["settings"].get("kind") != kind:
        raise StateError(f"holds something else than {kind}", where=str(folder), fix="use another folder")
    return [parse_json(line, where=str(folder)) for line in data.split(b"\n")[:-1]]


def _checked(folder: Path) -> tuple[JsonDict, bytes]:
    """Record and bytes of finished predictions. Raises StateError if they do not belong together.

    So does a damaged record of what made the answers, where the run's own loop did not.
    """
    record, data = read_sealed(folder / GENERATION, Generation), read_bytes(folder / PREDICTIONS)
    found = sha256_bytes(data)
    if found != record["sha256"]:
        raise StateError(
            f"checksum differs from {GENERATION}: sha256 {found[:12]}…, expected {record['sha256'][:12]}…",
            where=str(folder / PREDICTIONS),
            fix="restore the file, or remove the folder and evaluate again",
        )
    if record["settings"].get("backend"):
        read_sealed(folder / BACKEND, Backend)
    return record, data


def identity_of(settings: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Digest of how answers are made and of the rows they are made for."""
    asked = [[row.id, [turn.text for turn in row.turns], list(row.images)] for row in rows]
    return digest_of([dict(settings), asked])
