"""Rows on disk: one JSON line each, and an index of where each line stands. Only the rows in use are in memory.

``<split>.jsonl`` holds the lines, ``<split>.index.npy`` one record per row (20 bytes). Lines are read with ``pread``: a file
may be larger than memory, several threads may read, and no page of it counts as the process's own.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from mcit.core.errors import StateError
from mcit.core.files import canonical_json
from mcit.core.types import Row
from mcit.data.rowjson import row_from_json, row_to_json

INDEX = np.dtype([("start", "<i8"), ("size", "<i4"), ("characters", "<i4"), ("images", "<i4")])
"""Place and bytes of a line; characters of the row's turns and its pictures, to compare rows without reading them."""
IMAGE_LENGTH = 2_000
"""Characters that a picture counts for when rows are compared by length."""
_TOGETHER = 256


class StoredRows(Sequence[Row]):
    """Rows of a file in the order of an index; a slice or a choice of them is another index on the same file."""

    def __init__(
        self, path: Path, index: NDArray[np.void], *, roots: Mapping[str, str], pad_images: bool = False
    ) -> None:
        """`roots` are image roots by the name that rows give theirs; `pad_images` is told to every row."""
        self.path, self.table = path, index
        self._roots, self._pad_images = roots, pad_images
        self._file = _File(path)

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> StoredRows: ...
    def __getitem__(self, place: int | slice) -> Row | StoredRows:
        if isinstance(place, slice):
            return self._with(self.table[place])
        return self._row(self.line(place))

    def __iter__(self) -> Iterator[Row]:
        for line in self.lines():
            yield self._row(line)

    def pick(self, places: Sequence[int] | NDArray[np.integer[Any]]) -> StoredRows:
        """The rows at some places, in their order."""
        return self._with(self.table[np.asarray(places, dtype=np.int64)])

    def line(self, place: int) -> bytes:
        """The stored line of a row."""
        entry = self.table[place]
        return self._file.read(int(entry["start"]), int(entry["size"]))

    def lines(self) -> Iterator[bytes]:
        """The stored lines; neighbours in the file are read together."""
        for first in range(0, len(self.table), _TOGETHER):
            part = self.table[first : first + _TOGETHER]
            starts, sizes = part["start"].tolist(), part["size"].tolist()
            low, high = min(starts), max(a + n for a, n in zip(starts, sizes, strict=True))
            if high - low > 2 * sum(sizes):
                yield from (self._file.read(a, n) for a, n in zip(starts, sizes, strict=True))
                continue
            block = self._file.read(low, high - low)
            yield from (block[a - low : a - low + n] for a, n in zip(starts, sizes, strict=True))

    def image_names(self) -> Iterator[bytes]:
        """What pictures each row shows, in bytes that are equal where they are the same; empty for a row without any.

        Read off the line (keys are sorted, and a quote inside a text is escaped) without parsing it.
        """
        for line in self.lines():
            start, end = line.index(b'"images": [') + 11, line.index(b'], "meta": ')
            root = line.rindex(b'"root": ')
            names = line[start:end]
            yield line[root : line.index(b', "source": ', root)] + names if names else b""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Of each row, its characters and its pictures at `IMAGE_LENGTH` each."""
        return self.table["characters"].astype(np.int64) + IMAGE_LENGTH * self.table["images"].astype(np.int64)

    @property
    def sizes(self) -> tuple[list[int], list[int]]:
        """Of each row, its characters and its pictures."""
        return self.table["characters"].tolist(), self.table["images"].tolist()

    def _with(self, index: NDArray[np.void]) -> StoredRows:
        other = object.__new__(StoredRows)
        other.__dict__.update(self.__dict__, table=index)
        return other

    def _row(self, line: bytes) -> Row:
        value = json.loads(line.decode())
        row = row_from_json(value, root=self._roots[value["root"]])
        return replace(row, encoding=replace(row.encoding, pad_image=True)) if self._pad_images else row


class _File:
    """A file opened when it is first read, and closed with the last rows that refer to it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = -1

    def read(self, start: int, size: int) -> bytes:
        if self._handle < 0:
            try:
                self._handle = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise StateError(f"cannot be read ({error.strerror})", where=str(self._path), fix=_FIX) from None
        data = os.pread(self._handle, size, start)
        if len(data) != size:
            raise StateError("is shorter than its index says", where=str(self._path), fix=_FIX)
        return data

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # at exit `os` may be gone before the rows are
        if self._handle >= 0:
            close(self._handle)


_FIX = "remove the data folder: it is built again from the recipe"


class RowWriter:
    """Writes a file of rows; memory holds the index alone. Use as a context: the file is on disk when it ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "wb")
        self._at = 0
        self._columns = (array("q"), array("i"), array("i"), array("i"))

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._columns[0])

    def add(self, row: Row, *, root: str) -> None:
        """Append a row whose image root has the name `root`.

        Raises ValueError for a text or number that JSON in UTF-8 cannot hold; then nothing is written.
        """
        line = canonical_json(row_to_json(row, root=root)).encode()
        self.put(line, sum([len(turn.text) for turn in row.turns]), len(row.images))

    def put(self, line: bytes, characters: int, images: int) -> None:
        """Append a line as it is stored."""
        for column, value in zip(self._columns, (self._at, len(line), characters, images), strict=True):
            column.append(value)
        self._file.write(line)
        self._file.write(b"\n")
        self._at += len(line) + 1

    def finish(self) -> NDArray[np.void]:
        """Flush the file to disk; returns the index."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        index = np.empty(len(self), dtype=INDEX)
        for name, column in zip(INDEX.names or (), self._columns, strict=True):
            index[name] = np.frombuffer(column, column.typecode)
            del column[:]
        return index


def index_path(path: Path) -> Path:
    """Where the index of a file of rows lies."""
    return path.with_suffix(".index.npy")


def write_index(path: Path, index: NDArray[np.void]) -> None:
    """Store the index of a file of rows beside it."""
    with open(index_path(path), "wb") as file:
        np.save(file, index, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())


def read_index(path: Path) -> NDArray[np.void]:
    """The index of a file of rows. Raises StateError when it is missing or is none."""
    where = index_path(path)
    try:
        found = np.load(where, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise StateError("the index of the rows cannot be read", where=str(where), fix=_FIX) from None
    if found.dtype != INDEX or found.ndim != 1:
        raise StateError("is no index of rows", where=str(where), fix=_FIX)
    return np.asarray(found)
