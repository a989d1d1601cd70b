"""The rows of a split while a recipe is read: on disk, and a few numbers of each in memory to compare them by.

Ids, questions and picture paths are compared by 64 bits of a hash; whatever turns out equal is read again before anything is
said about it. A row takes about 60 bytes, so a million rows are as large as they are on disk and small in memory.
"""

from __future__ import annotations

from array import array
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mcit.core.types import Row
from mcit.data.rowfile import RowWriter, StoredRows
from mcit.data.tally import Tally

Numbers = NDArray[np.int64]


class Gathered:
    """Rows of one split, added one by one, then closed and compared."""

    def __init__(self, path: Path, roots: dict[str, str]) -> None:
        """`roots` are names of image roots by their path."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writer, self._names = RowWriter(path), roots
        self._styles: dict[str, int] = {}
        self._columns = {name: array("q") for name in ("id", "ask", "picture")}
        self._places = {"ask": array("i"), "picture": array("i"), "style": array("H")}
        self.tally = Tally()

    def __len__(self) -> int:
        return len(self._places["style"])

    def add(self, row: Row) -> None:
        """Append a row. Raises ValueError for one that cannot be stored."""
        place = len(self._writer)
        self._writer.add(row, root=self._names[row.root])
        self._columns["id"].append(hash(row.id))
        self._places["style"].append(self._styles.setdefault(row.style, len(self._styles)))
        for question in questions(row):
            self._columns["ask"].append(hash(question))
            self._places["ask"].append(place)
        for image in row.images:
            self._columns["picture"].append(picture_key(row, image))
            self._places["picture"].append(place)
        self.tally.add(row)

    def close(self) -> None:
        """Put the rows on disk; from here on they can be read and compared."""
        roots = {name: root for root, name in self._names.items()}
        self.all = StoredRows(self._writer.path, self._writer.finish(), roots=roots)
        self.ids, self.asks, self.pictures = (np.frombuffer(c, np.int64) for c in self._columns.values())
        self.ask_rows, self.picture_rows = (np.frombuffer(self._places[name], np.int32) for name in ("ask", "picture"))
        self._style_of = np.frombuffer(self._places["style"], np.uint16)
        self.picture_digests = np.zeros(len(self.pictures), np.int64)
        """60 bits of each picture's sha256, once they are known."""
        self.alive = np.ones(len(self.all), bool)

    def drop(self, place: int, row: Row) -> None:
        """Leave a row out."""
        self.alive[place] = False
        self.tally.remove(row)

    @property
    def rows(self) -> StoredRows:
        """The rows that are left."""
        return self.all if self.alive.all() else self.all.pick(np.flatnonzero(self.alive))

    def places(self, rows: StoredRows) -> Numbers:
        """Where chosen rows stand among all."""
        return np.searchsorted(self.all.table["start"], rows.table["start"])

    def styles(self, rows: StoredRows) -> Counter[str]:
        """How many of chosen rows have which style."""
        counts = np.bincount(self._style_of[self.places(rows)], minlength=len(self._styles)).tolist()
        return Counter({style: count for style, count in zip(self._styles, counts, strict=True) if count})


def picture_key(row: Row, image: str) -> int:
    """64 bits that stand for a picture's place."""
    return hash((row.root, image))


def questions(row: Row) -> list[str]:
    """What a row asks, without placeholders and with single blanks."""
    return [" ".join(turn.text.replace("<image>", " ").split()) for turn in row.turns if turn.role == "user"]
