"""One stream of rows: its order, and which view of a row stands where.

The order of a stream depends on (seed, epoch) alone, and its position is one integer: rows drawn so far. A step is a
slice of that order, whatever the number of ranks, micro-batches or worker threads. Only a stream whose rows are chosen
step by step is asked anew in every step.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mcit.core.errors import DataError, TrainingError
from mcit.core.seeds import seed_for
from mcit.core.types import Draw, Row

Order = Callable[[int, int, int], Sequence[Draw]]
"""(epoch, rows, seed) -> the draws of that epoch, as many as there are rows."""
Show = Callable[[Row, int, int], Row]
"""(row, view, seed) -> the row as that view shows it; asked for views above 0."""
Choose = Callable[[int, int], Sequence[Draw]]
"""(rows, size) -> the draws of the coming step."""


@lru_cache(maxsize=8)
def epoch_order(seed: int, epoch: int, count: int) -> array[int]:
    """A permutation of ``range(count)`` that depends on (seed, epoch) alone.

    Fisher-Yates over ``random.Random.random``, whose sequence Python guarantees for ever (``shuffle`` it does not).
    """
    draw = random.Random(seed_for(seed, "epoch", epoch)).random
    order = array("i", range(count))
    for last in range(count - 1, 0, -1):
        pick = int(draw() * (last + 1))
        order[last], order[pick] = order[pick], order[last]
    return order


class Shuffle:
    """The order of each epoch of `count` rows: a permutation that depends on the seed, the epoch and which rows go together.

    With `images` (a number per row, equal for rows of one picture) the next rows of a picture, up to `most` of them, follow
    the first of them that the plain permutation brings. With one row per picture nothing moves.
    """

    def __init__(self, seed: int, count: int, *, images: NDArray[np.int64] | None = None, most: int = 1) -> None:
        self._seed, self._count, self._images, self._most = seed, count, images, most
        self._epochs: dict[int, Sequence[int]] = {}

    def order(self, epoch: int) -> Sequence[int]:
        """Row numbers of an epoch; those of this epoch and the one before are kept."""
        if self._images is None or self._most == 1:
            return epoch_order(self._seed, epoch, self._count)
        if epoch not in self._epochs:
            found = together(epoch_order(self._seed, epoch, self._count), self._images, self._most)
            self._epochs = {e: order for e, order in self._epochs.items() if e == epoch - 1} | {epoch: found}
        return self._epochs[epoch]


def together(order: Sequence[int], images: NDArray[np.int64], most: int) -> array[int]:
    """An order of rows in which rows of one picture follow the first of them, up to `most` at a time."""
    rows = np.asarray(order, dtype=np.int64)
    by_image = np.argsort(images[rows], kind="stable")
    places = np.arange(len(rows))
    starts = np.ones(len(rows), dtype=bool)
    starts[1:] = images[rows][by_image][1:] != images[rows][by_image][:-1]
    since = places - np.maximum.accumulate(np.where(starts, places, 0))
    leader = np.maximum.accumulate(np.where(since % most == 0, places, 0))
    moved_to = np.empty_like(places)
    moved_to[by_image] = by_image[leader]
    return array("i", rows[np.argsort(moved_to, kind="stable")].tolist())


class Stream:
    """A named, endless or bounded sequence of rows: one epoch after the other."""

    foreseeable = True
    """Whether the rows of a step are known before the step in front of it has ended."""

    def __init__(
        self,
        name: str,
        rows: Sequence[Row],
        *,
        per_step: int,
        seed: int,
        total: int | None = None,
        group: int = 1,
        until: str = "",
        order: Order | None = None,
        show: Show | None = None,
        shuffle: Shuffle | None = None,
    ) -> None:
        """`per_step` rows make a step; after `total` rows the stream is empty (never, when it is None).

        `group` rows that follow each other stay together. Without `order` every epoch is a new permutation, or `shuffle`'s.
        """
        if not rows and total != 0:
            raise DataError("the stream has no rows", where=f"stream {name}", fix="check the recipe's train split")
        if per_step < 0 or group < 1 or per_step % group:
            fix = f"use a number of rows per step that {group} divides"
            raise DataError(f"{per_step} rows a step in groups of {group}", where=f"stream {name}", fix=fix)
        self.name, self.rows, self.per_step, self.seed, self.total = name, rows, per_step, seed, total
        self.group, self.until = group, until
        self._order, self._show = order, show
        self._shuffle = shuffle or Shuffle(seed, len(rows))
        self._epochs: dict[int, Sequence[Draw]] = {}

    def draw(self, position: int) -> Draw:
        """Row and view at a position of the endless order. Raises TrainingError for an order that names no such row."""
        epoch, index = divmod(position, len(self.rows))
        if self._order is None:
            return self._shuffle.order(epoch)[index], 0
        if epoch not in self._epochs:
            draws = self._checked(self._order(epoch, len(self.rows), self.seed), len(self.rows))
            self._epochs = {e: d for e, d in self._epochs.items() if e == epoch - 1} | {epoch: draws}
        return self._epochs[epoch][index]

    def at(self, position: int) -> Row:
        """The row at a position, as its view shows it."""
        number, view = self.draw(position)
        row = self.rows[number]
        if view == 0:
            return row
        if self._show is None:
            what, fix = f"view {view} is asked for, but nothing makes views", "let the method that asks have on_row"
            raise TrainingError(what, where=f"stream {self.name}", fix=fix)
        shown = self._show(row, view, self.seed)
        if shown.id != row.id or len(shown.images) != len(row.images):
            what, fix = "on_row changed a row's id or its number of images", "let it change texts and encoding alone"
            raise TrainingError(what, where=row.where, fix=fix)
        return shown

    def step(self, cursor: int) -> range:
        """Positions of the step that starts at `cursor`; the last one may be short, then they are empty."""
        end = cursor + self.per_step
        return range(cursor, end if self.total is None else max(cursor, min(end, self.total)))

    def members(self, positions: range) -> Sequence[int]:
        """Those of a step's positions at which a row of this stream stands: all of them."""
        return positions

    def enter(self, positions: range) -> None:
        """The step of these positions begins."""

    def _checked(self, draws: Sequence[Draw], count: int) -> Sequence[Draw]:
        where, rows = f"stream {self.name}", len(self.rows)
        if len(draws) != count:
            raise TrainingError(
                f"{len(draws)} draws where {count} are due", where=where, fix="return one for each place"
            )
        for number, view in draws:
            if not 0 <= number < rows or view < 0:
                raise TrainingError(f"draw ({number}, {view}) is none of {rows} rows", where=where, fix="count from 0")
        return draws


class ChosenStream(Stream):
    """A stream whose method names the rows of each step when the step begins."""

    foreseeable = False
    choose: Choose
    """Set once the stage's context exists."""

    _first = 0
    _draws: Sequence[Draw] = ()

    def draw(self, position: int) -> Draw:
        """Row and view at a position of the present step."""
        return self._draws[position - self._first]

    def enter(self, positions: range) -> None:
        """Ask for the rows of the step. Raises TrainingError for an answer of another size or with unknown rows."""
        self._first = positions.start
        self._draws = self._checked(self.choose(len(self.rows), len(positions)), len(positions)) if positions else ()


class MixedStream(Stream):
    """One of several streams that share an order: each epoch shuffles the rows of all of them together.

    A step is a slice of the shared order, and positions count in it, so that all of the streams have one cursor.
    """

    def __init__(
        self,
        name: str,
        rows: Sequence[Row],
        *,
        first: int,
        count: int,
        per_step: int,
        seed: int,
        total: int,
        shuffle: Shuffle | None = None,
    ) -> None:
        """Its rows are numbers ``first, first + 1, …`` of the `count` rows that are shuffled."""
        super().__init__(name, rows, per_step=per_step, seed=seed, total=total, shuffle=shuffle or Shuffle(seed, count))
        self.first, self.count = first, count

    def _number(self, position: int) -> int:
        epoch, index = divmod(position, self.count)
        return self._shuffle.order(epoch)[index] - self.first

    def draw(self, position: int) -> Draw:
        """The row at a position of the shared order, which must be a member."""
        return self._number(position), 0

    def members(self, positions: range) -> Sequence[int]:
        """Positions at which the shared order has a row of this stream."""
        return [position for position in positions if 0 <= self._number(position) < len(self.rows)]


def mix(
    parts: Sequence[tuple[str, Sequence[Row]]],
    *,
    per_step: int,
    seed: int,
    total: int,
    shuffle: Shuffle | None = None,
) -> list[Stream]:
    """Streams of named rows that are shuffled together, by `shuffle` over all of them."""
    count = sum(len(rows) for _, rows in parts)
    shuffle = shuffle or Shuffle(seed, count)
    firsts = [sum(len(rows) for _, rows in parts[:k]) for k in range(len(parts))]
    return [
        MixedStream(name, rows, first=first, count=count, per_step=per_step, seed=seed, total=total, shuffle=shuffle)
        for first, (name, rows) in zip(firsts, parts, strict=True)
    ]
