"""A memory in a folder: plain JSON lines for its texts, safetensors for its vectors, checksums, one writer at a time.

``memory.json`` names the files it goes with and is written last, so a folder is always whole. What is said afterwards lies in
``turns.jsonl``, a line per turn, and is remembered again when the folder is opened: a kill loses no turn that was answered.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from pydantic import ValidationError

from mcit.core.errors import StateError
from mcit.core.files import (
    append_line,
    canonical_json,
    explained,
    parse_json,
    read_bytes,
    remove,
    remove_temporaries,
    sha256_file,
    write_bytes,
    write_text,
)
from mcit.core.stored import read_sealed, read_sealed_lines, sealed_line, valid, write_sealed
from mcit.core.types import JsonDict
from mcit.memory.compact import Compact, Summarise
from mcit.memory.memory import Embedder, Entry, Memory, MemoryConfig
from mcit.memory.records import MemoryEntry, MemoryRecord, MemoryTurn

RECORD, TURNS, LOCK = "memory.json", "turns.jsonl", ".lock"
_VECTORS = "vectors"
_OURS = re.compile(r"(entries-[ab]\.jsonl|vectors-[ab]\.safetensors)")


class MemoryFolder:
    """An opened folder; a context manager that holds its lock."""

    def __init__(
        self,
        path: Path | str,
        embed: Embedder,
        summarise: Summarise,
        *,
        config: MemoryConfig | None = None,
        reembed: bool = False,
    ) -> None:
        """`config` is for a folder that is begun now; an older one keeps its own. `reembed` embeds its texts anew."""
        self.path = Path(path)
        self._given: tuple[Embedder, Summarise] = (embed, summarise)
        self._config, self._reembed = config, reembed
        self._lock = FileLock(str(self.path / LOCK))
        self._renewed = False
        self._saved: int | None = None
        """Turns of what `memory.json` holds; None where it has to be written."""
        self.memory: Memory
        """What is in it; there once the folder is entered."""

    def __enter__(self) -> MemoryFolder:
        """Read the folder, or begin one where there is nothing.

        Raises StateError for a folder that is in use, is damaged, holds other things, or was made with another encoder.
        """
        require_folder(self.path)
        with explained(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(blocking=False)
            except Timeout:
                fix = "wait for it to end, or give another folder"
                raise StateError("another process uses this memory", where=str(self.path), fix=fix) from None
        try:
            remove_temporaries(self.path)
            begun = (self.path / RECORD).is_file()
            self.memory = self._read() if begun else Memory(*self._given, self._config)
            self._saved = self.memory.turns if begun and not self._renewed else None
            self._repeat()
            self._save()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._save()
        finally:
            self._lock.release()

    def remember(self, question: str, answer: str, *, recalled: list[int]) -> None:
        """The next turn, in the memory and on disk; in neither if it cannot be embedded, which raises DataError."""
        turn = {"turn": self.memory.turns, "question": question, "answer": answer, "recalled": recalled}
        self.memory.remember(question, answer, recalled=recalled)
        append_line(self.path / TURNS, sealed_line(turn))
        if self.memory.turns % self.memory.config.prune_every == 0:
            self._save()

    # ---- reading -----------------------------------------------------------------------------------------------------
    def _read(self) -> Memory:
        record = read_sealed(self.path / RECORD, MemoryRecord)
        embed, summarise = self._given
        if not self._reembed:
            require_encoder(self.path, embed.identity, embed.dimension)
        try:
            memory = Memory(embed, summarise, MemoryConfig.model_validate(record["settings"]))
        except ValidationError as error:
            what = f"its settings are no settings of a memory: {error.errors()[0]['msg']}"
            raise StateError(what, where=str(self.path / RECORD), fix=MemoryRecord.fix) from None
        memory.compact = Compact(
            summarise, block=memory.config.block, running=record["running"], overview=record["overview"]
        )
        memory.turns = record["turns"]
        names = {Path(name).suffix: self._checked(name, entry) for name, entry in record["files"].items()}
        memory.entries = _entries(names[".jsonl"])
        if any(entry.turn >= memory.turns for entry in memory.entries):
            raise StateError("an entry is of a turn to come", where=str(names[".jsonl"]), fix=MemoryRecord.fix)
        if self._reembed:
            memory.reembed()
            self._renewed = True
        else:
            memory.vectors.add(_vectors(names[".safetensors"], len(memory.entries), embed.dimension), unit=True)
        return memory

    def _checked(self, name: str, entry: JsonDict) -> Path:
        path = self.path / name
        if not path.is_file():
            raise StateError("file of the memory is missing", where=str(path), fix=MemoryRecord.fix)
        if path.stat().st_size != entry["bytes"] or sha256_file(path) != entry["sha256"]:
            what = f"size or checksum differs from {RECORD}"
            raise StateError(what, where=str(path), fix=MemoryRecord.fix)
        return path

    def _repeat(self) -> None:
        """Remember again what was said after the last save."""
        turns, damaged = read_sealed_lines(self.path / TURNS, MemoryTurn)
        if damaged:
            where = f"{self.path / TURNS}:{damaged[0]}"
            fix = "restore the line from a copy, or remove it: that turn is then not remembered"
            raise StateError("is not a turn as it was written: its checksum differs", where=where, fix=fix)
        for turn in turns:
            if turn["turn"] < self.memory.turns:
                continue  # saved, and the process ended before the line was removed
            if any(place >= len(self.memory.entries) for place in turn["recalled"]):
                what = "recalls an entry that is not there"
                raise StateError(what, where=str(self.path / TURNS), fix=MemoryRecord.fix)
            self.memory.remember(turn["question"], turn["answer"], recalled=turn["recalled"])

    # ---- writing -----------------------------------------------------------------------------------------------------
    def _save(self) -> None:
        """Everything, if there is anything new; `memory.json` is the commit."""
        m = self.memory
        if m.turns == self._saved:
            return
        names = {
            suffix: self._name(stem, suffix) for stem, suffix in (("entries", ".jsonl"), (_VECTORS, ".safetensors"))
        }
        lines = [canonical_json(vars(entry)) + "\n" for entry in m.entries]
        write_text(self.path / names[".jsonl"], "".join(lines))
        write_bytes(self.path / names[".safetensors"], _safetensors(m.vectors.matrix_ND))
        record: dict[str, Any] = {
            "encoder": m.embed.identity,
            "dimension": m.embed.dimension,
            **m.state(),
            "settings": m.config.model_dump(mode="json"),
            "files": {name: _entry(self.path / name) for name in names.values()},
        }
        write_sealed(self.path / RECORD, record)
        self._saved = m.turns
        for path in self.path.iterdir():
            if path.name == TURNS or _OURS.fullmatch(path.name) and path.name not in names.values():
                remove(path)

    def _name(self, stem: str, suffix: str) -> str:
        """One that the present record does not use, so that a kill while writing harms nothing."""
        with contextlib.suppress(StateError):
            if f"{stem}-a{suffix}" in read_sealed(self.path / RECORD, MemoryRecord)["files"]:
                return f"{stem}-b{suffix}"
        return f"{stem}-a{suffix}"


def require_folder(path: Path | str) -> None:
    """Raises StateError for a place that is no folder or holds something else: nothing is written there."""
    path = Path(path)
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise StateError("is no folder", where=str(path), fix="give a folder for the memory")
    names = {inside.name for inside in path.iterdir()} if path.is_dir() else set()
    if RECORD not in names and names - {LOCK, TURNS} - {n for n in names if n.startswith(".memory.json.")}:
        fix = "give an empty folder, or one that mcit chat made; a lost memory.json has to come from a copy"
        raise StateError(f"holds other things and no {RECORD}", where=str(path), fix=fix)


def require_encoder(path: Path | str, identity: str, dimension: int | None = None) -> None:
    """Raises StateError where a memory's vectors were made by another encoder, or have another number of numbers; nothing is
    loaded for that.
    """
    if not (record_file := Path(path) / RECORD).is_file():
        return
    record = read_sealed(record_file, MemoryRecord)
    if record["encoder"] != identity or dimension not in (None, record["dimension"]):
        mine = identity if dimension is None else f"{identity} ({dimension} numbers)"
        what = f"its vectors are of the encoder {record['encoder']} ({record['dimension']} numbers), this one is {mine}"
        fix = "use that encoder (the same weights), or add --reembed: the texts are then embedded anew"
        raise StateError(what, where=str(record_file), fix=fix)


def _entry(path: Path) -> JsonDict:
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _entries(path: Path) -> list[Entry]:
    out = []
    for number, line in enumerate(read_bytes(path).splitlines(), start=1):
        where = f"{path}:{number}"
        out.append(Entry(**valid(MemoryEntry, parse_json(line, where=where), where=where)))
    return out


def _safetensors(matrix_ND: NDArray[np.float32]) -> bytes:
    from safetensors.numpy import save

    return save({_VECTORS: np.ascontiguousarray(matrix_ND)}, metadata={"format": "np"})


def _vectors(path: Path, count: int, dimension: int) -> NDArray[np.float32]:
    """(N, D). Raises StateError for a file that is none, or of another shape or type than the entries need."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        found = load(read_bytes(path)).get(_VECTORS)
    except SafetensorError as error:
        raise StateError(f"not a whole safetensors file ({error})", where=str(path), fix=MemoryRecord.fix) from None
    if found is None or found.dtype != np.float32 or found.shape != (count, dimension):
        shape = "nothing" if found is None else f"{found.dtype} {found.shape}"
        what = f"holds {shape} where {count} vectors of {dimension} numbers are needed"
        raise StateError(what, where=str(path), fix=MemoryRecord.fix)
    matrix_ND: NDArray[np.float32] = found
    return matrix_ND
