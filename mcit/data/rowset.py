"""Rows as sequences that need not be in memory: one after the other, chosen by place, compared by length."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from mcit.core.types import Row
from mcit.data.rowfile import IMAGE_LENGTH, StoredRows

Places = Sequence[int] | NDArray[np.integer[Any]]


class Joined(Sequence[Row]):
    """The rows of several sequences, one after the other."""

    def __init__(self, parts: Sequence[Sequence[Row]]) -> None:
        self.parts = tuple(part for part in parts if len(part))
        self._ends = list(accumulate(len(part) for part in self.parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Row]: ...
    def __getitem__(self, place: int | slice) -> Row | Sequence[Row]:
        if isinstance(place, slice):
            return self if place == slice(None) else Chosen(self, range(len(self))[place])
        place = range(len(self))[place]
        part = bisect_right(self._ends, place)
        return self.parts[part][place - (self._ends[part - 1] if part else 0)]

    def __iter__(self) -> Iterator[Row]:
        return chain.from_iterable(self.parts)


class Chosen(Sequence[Row]):
    """Rows of another sequence at some places."""

    def __init__(self, rows: Sequence[Row], places: Places) -> None:
        self.rows, self.places = rows, places

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> Chosen: ...
    def __getitem__(self, place: int | slice) -> Row | Chosen:
        if isinstance(place, slice):
            return Chosen(self.rows, self.places[place])
        return self.rows[int(self.places[place])]


def joined(parts: Sequence[Sequence[Row]]) -> Sequence[Row]:
    """The rows of all parts; a single part is itself."""
    filled = [part for part in parts if len(part)]
    return filled[0] if len(filled) == 1 else Joined(filled)


def parts_of(rows: Sequence[Row]) -> Sequence[Sequence[Row]]:
    """What joined rows are joined of; other rows are one part."""
    return rows.parts if isinstance(rows, Joined) else [rows]


def pick(rows: Sequence[Row], places: Places) -> Sequence[Row]:
    """The rows at some places, in their order, read when they are asked for."""
    return rows.pick(places) if isinstance(rows, StoredRows) else Chosen(rows, places)


def row_length(row: Row) -> int:
    """A length to compare rows by without encoding them: characters, and pictures at a fixed number of them."""
    return sum(len(turn.text) for turn in row.turns) + IMAGE_LENGTH * len(row.images)


def lengths(rows: Sequence[Row]) -> NDArray[np.int64]:
    """`row_length` of every row; of stored ones without reading them."""
    if isinstance(rows, StoredRows):
        return rows.lengths
    if isinstance(rows, Joined):
        return np.concatenate([lengths(part) for part in rows.parts]) if rows.parts else np.empty(0, np.int64)
    return np.fromiter((row_length(row) for row in rows), np.int64, len(rows))


def longest(rows: Sequence[Row], count: int) -> list[Row]:
    """The longest rows by `row_length`, the longest first, the first of equal ones first."""
    order = np.argsort(-lengths(rows), kind="stable")[:count]
    return [rows[int(place)] for place in order]


def image_keys(rows: Sequence[Row]) -> NDArray[np.int64]:
    """A number per row, equal for rows that show the same pictures; a row without pictures has one of its own."""
    found = np.concatenate([np.empty(0, np.int64), *(_keys_of(part) for part in parts_of(rows))])
    alone = found == 0
    found[alone] = -1 - np.flatnonzero(alone)
    return found


def _keys_of(rows: Sequence[Row]) -> NDArray[np.int64]:
    """Positive numbers, and 0 for a row without pictures."""
    names = rows.image_names() if isinstance(rows, StoredRows) else (image_name(row) for row in rows)
    return np.fromiter((_number(name) if name else 0 for name in names), np.int64, len(rows))


def _number(name: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 2 | 1


def image_name(row: Row) -> bytes:
    """What pictures a row shows, whatever is done with them; empty when it has none."""
    return "\0".join([row.root, *row.images]).encode() if row.images else b""
