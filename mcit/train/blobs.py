"""Large tensors that belong to a run, not to a stage: computed once, kept as one memory-mapped file each.

A blob is named by the digest of everything it depends on (its fingerprint), so another base or another pool is another
file. It can always be computed again, so it is no part of a stage's commit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mcit.core.errors import StateError
from mcit.core.files import canonical_json, digest_of, sha256_file
from mcit.core.ranks import on_first
from mcit.core.records import BlobRecord
from mcit.core.stored import read_sealed, write_sealed
from mcit.core.tensorfile import TensorFile, save_tensors
from mcit.core.types import JsonDict
from mcit.engine import world

Built = tuple[Mapping[str, Tensor], JsonDict]
"""Tensors by name, and JSON that says what lies where in them."""


@dataclass(frozen=True)
class StoredBlob:
    """An opened blob."""

    index: JsonDict
    file: TensorFile

    def get(self, name: str) -> Tensor:
        """A whole tensor, read now."""
        return self.file.get(name)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """A part of a tensor's first axis, read now."""
        return self.file.rows(name, start, stop)


class Blobs:
    """The blobs of a run in one folder; without a folder, in one that lives as long as this object."""

    def __init__(self, folder: Path | None = None) -> None:
        self._temporary = None if folder else tempfile.TemporaryDirectory(prefix="mcit-blobs-")
        self._folder = folder or Path(self._temporary.name)  # type: ignore[union-attr]
        self._open: dict[str, StoredBlob] = {}

    def open(self, name: str, fingerprint: JsonDict, build: Callable[[], Built]) -> StoredBlob:
        """The blob of this fingerprint, computed by `build` if it is not there; every rank calls, rank 0 writes.

        Raises StateError when the file was cut off or edited since.
        """
        key = f"{name}-{digest_of(fingerprint)[:12]}"
        if key not in self._open:
            record = self._folder / f"{key}.json"
            data = record.with_suffix(".safetensors")
            if not on_first(world, lambda: _is_whole(record, data, fingerprint)):
                content = build()
                on_first(world, lambda: _write(record, data, fingerprint, content))
            self._open[key] = StoredBlob(read_sealed(record, BlobRecord)["index"], TensorFile(data))
        return self._open[key]


def _is_whole(record: Path, data: Path, fingerprint: JsonDict) -> bool:
    """Whether the blob is there; its record is written last."""
    if not record.is_file():
        return False
    fix = f"remove {record} and {data.name}; they are computed again"
    try:
        known = read_sealed(record, BlobRecord)
    except StateError as error:
        raise StateError(error.what, where=error.where, fix=fix) from None
    if canonical_json(known["fingerprint"]) != canonical_json(fingerprint):
        raise StateError("is of another fingerprint than its name says", where=str(record), fix=fix)
    if not data.is_file():
        return False
    if data.stat().st_size != known["bytes"] or sha256_file(data) != known["sha256"]:
        raise StateError("size or checksum differs from its record", where=str(data), fix=fix)
    return True


def _write(record: Path, data: Path, fingerprint: JsonDict, content: Built) -> None:
    tensors, index = content
    save_tensors(data, tensors)
    known = {"fingerprint": fingerprint, "bytes": data.stat().st_size, "sha256": sha256_file(data)}
    write_sealed(record, {**known, "index": index})
