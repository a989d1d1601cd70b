"""Checks that need all rows of a recipe: pictures, ids, questions that stand in training and test.

Each marks the rows that cannot be used and yields what is wrong with them, in the rows' order.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcit.core.errors import DataError, Problem
from mcit.core.hashes import sha256_files
from mcit.core.types import Row
from mcit.data.gathered import Gathered, Numbers, questions
from mcit.data.images import open_image, resolve_below
from mcit.data.pictures import PictureList, located

_TOGETHER = 256
_ROWS = 1 << 16
"""Rows that are compared with the test at once."""
_HALF = 0.5


def check_pictures(splits: Mapping[Any, Gathered], listed: PictureList, summary: list[Problem]) -> Iterator[Problem]:
    """Open every picture once, note its checksum, and drop rows with one that cannot be used."""
    keys = np.concatenate([np.empty(0, np.int64), *(part.pictures for part in splits.values())])
    known, first = np.unique(keys, return_index=True)
    order = np.argsort(first)
    bad: dict[int, tuple[str, str]] = {}
    digests = np.zeros(len(known), np.int64)
    todo = zip(order.tolist(), _first_uses(splits, first[order]), strict=True)
    while part := list(itertools.islice(todo, _TOGETHER)):  # hashed while what was decoded is still in memory
        for number, (row, image) in part:
            try:
                open_image(resolve_below(row.root, image, where=row.where), where=row.where)
            except DataError as error:
                bad[number] = (error.problems[0].what, error.problems[0].fix)
        found = sha256_files(located(row.root, image) for _, (row, image) in part)
        for (number, (row, image)), digest in zip(part, found, strict=True):
            listed.add(row.root, image, digest)
            digests[number] = int(digest[:15], 16) if digest else 0
    listed.close(known[order])
    for gathered in splits.values():
        numbers = np.searchsorted(known, gathered.pictures)
        gathered.picture_digests = digests[numbers]
        if bad:
            wrong = np.isin(numbers, np.fromiter(bad, np.int64, len(bad)))
            uses = dict(zip(gathered.picture_rows[wrong][::-1].tolist(), numbers[wrong][::-1].tolist(), strict=True))
            summary += _missing_together(gathered, uses, bad)
            yield from (_dropped(gathered, place, *bad[uses[place]]) for place in sorted(uses))


def check_ids(splits: Mapping[Any, Gathered]) -> Iterator[Problem]:
    """Ids must be unique in a split, over all its sources."""
    for gathered in splits.values():
        repeated = _repeated(gathered.ids[gathered.alive])
        if not len(repeated):
            continue
        places = np.flatnonzero(gathered.alive & np.isin(gathered.ids, repeated))
        first: dict[str, tuple[int, str]] = {}
        for place in places.tolist():
            row = gathered.all[place]
            other, source = first.setdefault(row.id, (place, row.source))
            if other != place:
                what = f"id '{row.id}' is already used at {source}"
                yield _dropped(gathered, place, what, "give each row of a split its own id, or write ids: number", row)


def check_overlap(train: Sequence[Gathered], test: Gathered, summary: list[Problem]) -> Iterator[Problem]:
    """A training row must not ask what a test row asks about the same pictures (compared by content)."""
    tested, owners = _asked(test, 0, len(test))
    order = np.argsort(tested, kind="stable")
    tested, owners = tested[order], owners[order]
    for gathered in train:
        done: set[int] = set()
        for first in range(0, len(gathered) if len(tested) else 0, _ROWS):
            asked, rows = _asked(gathered, first, first + _ROWS)
            low, high = np.searchsorted(tested, asked), np.searchsorted(tested, asked, side="right")
            for hit in np.flatnonzero(low < high).tolist():
                place = int(rows[hit])
                if place in done:
                    continue
                row = gathered.all[place]
                near = (test.all[owner] for owner in owners[low[hit] : high[hit]][::-1].tolist())
                twin = next((other for other in near if set(questions(row)) & set(questions(other))), None)
                if twin is not None:
                    done.add(place)
                    what = f"asks the same about the same picture as test row {twin.where}"
                    yield _dropped(gathered, place, what, "remove it from one of the two splits", row)
        if len(done) > _HALF * len(gathered) and len(done) > 1:
            what = f"{len(done)} of {len(gathered)} rows ask what the test asks: is one file the other split's?"
            summary.append(Problem("train", what, "check which file is for training and which for the test"))


# ---- steps ----------------------------------------------------------------------------------------------------------
def _first_uses(splits: Mapping[Any, Gathered], uses: NDArray[np.int64]) -> Iterator[tuple[Row, str]]:
    """Row and path of pictures, by their places among all uses, which ascend."""
    parts, ends = list(splits.values()), np.cumsum([len(part.pictures) for part in splits.values()])
    for use in uses.tolist():
        number = int(np.searchsorted(ends, use, side="right"))
        part, at = parts[number], use - (int(ends[number - 1]) if number else 0)
        place = int(part.picture_rows[at])
        row = part.all[place]
        yield row, row.images[at - int(np.searchsorted(part.picture_rows, place))]


def _missing_together(
    gathered: Gathered, uses: Mapping[int, int], bad: Mapping[int, tuple[str, str]]
) -> Iterator[Problem]:
    """One line on top where many rows lack their pictures: how many, and below which folders."""
    gone = [place for place, number in uses.items() if "does not exist" in bad[number][0]]
    if len(gone) < 3:
        return
    rows = gathered.all.pick(sorted(gone))
    folders = Counter(image.rpartition("/")[0] or "." for row in rows for image in row.images[:1])
    task, named = rows[0].task, ", ".join(f"{name} {count}" for name, count in folders.most_common(5))
    what = f"{len(gone)} of {len(gathered)} rows lack a picture, below {rows[0].root}: {named}"
    yield Problem(f"task {task}", what, "fetch the rest of the archive, or correct `images` of the source")


def _dropped(gathered: Gathered, place: int, what: str, fix: str, row: Row | None = None) -> Problem:
    row = row or gathered.all[place]
    gathered.drop(place, row)
    return Problem(row.where, what, fix)


def _repeated(ids: Numbers) -> Numbers:
    found = np.sort(ids)
    return np.unique(found[1:][found[1:] == found[:-1]])


def _asked(gathered: Gathered, start: int, stop: int) -> tuple[NDArray[np.uint64], Numbers]:
    """Of each question of the rows from `start` to `stop`: 64 bits of its words and of its row's pictures in order; its row."""
    part = slice(*np.searchsorted(gathered.picture_rows, (start, stop)))
    owners = gathered.picture_rows[part].astype(np.int64)
    nth = np.arange(len(owners)) - np.searchsorted(owners, owners)
    shown = np.zeros(stop - start, np.uint64)
    digests = gathered.picture_digests[part].astype(np.uint64)
    np.add.at(shown, owners - start, _mixed(digests + _mixed((nth + 1).astype(np.uint64))))
    part = slice(*np.searchsorted(gathered.ask_rows, (start, stop)))
    rows = gathered.ask_rows[part].astype(np.int64)
    asks, left = gathered.asks[part].astype(np.uint64), gathered.alive[rows]
    return _mixed(asks[left] ^ shown[rows[left] - start]), rows[left]


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser: a one-to-one map of 64 bits that leaves no pattern."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
