"""Seekable streams of rows, and the batches of a step.

The order of a stream depends on (seed, epoch) alone, and its position is one integer: rows drawn so far. A step is a
slice of that order, whatever the number of ranks, micro-batches or worker threads.
"""

from __future__ import annotations

import copy
import random
import threading
from array import array
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache

import torch

from mcit.core.errors import DataError, StateError
from mcit.core.seeds import seed_for
from mcit.core.types import Batch, Row, Sample
from mcit.data.collate import collate
from mcit.data.encode import IGNORE, Encoder
from mcit.data.rowset import longest, row_length


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


class Stream:
    """A named, endless or bounded sequence of rows: one shuffled epoch after the other."""

    def __init__(self, name: str, rows: Sequence[Row], *, per_step: int, seed: int, total: int | None = None) -> None:
        """`per_step` rows make a step; after `total` rows the stream is empty (never, when it is None)."""
        if not rows and total != 0:
            raise DataError("the stream has no rows", where=f"stream {name}", fix="check the recipe's train split")
        self.name, self.rows, self.per_step, self.seed, self.total = name, rows, per_step, seed, total

    def at(self, position: int) -> Row:
        """The row at a position of the endless order."""
        epoch, index = divmod(position, len(self.rows))
        return self.rows[epoch_order(self.seed, epoch, len(self.rows))[index]]

    def step(self, cursor: int) -> range:
        """Positions of the step that starts at `cursor`; the last one may be short, then they are empty."""
        end = cursor + self.per_step
        return range(cursor, end if self.total is None else max(cursor, min(end, self.total)))

    def members(self, positions: range) -> Sequence[int]:
        """Those of a step's positions at which a row of this stream stands: all of them."""
        return positions


class MixedStream(Stream):
    """One of several streams that share an order: each epoch shuffles the rows of all of them together.

    A step is a slice of the shared order, and positions count in it, so that all of the streams have one cursor.
    """

    def __init__(
        self, name: str, rows: Sequence[Row], *, first: int, count: int, per_step: int, seed: int, total: int
    ) -> None:
        """Its rows are numbers ``first, first + 1, …`` of the `count` rows that are shuffled."""
        super().__init__(name, rows, per_step=per_step, seed=seed, total=total)
        self.first, self.count = first, count

    def _number(self, position: int) -> int:
        epoch, index = divmod(position, self.count)
        return epoch_order(self.seed, epoch, self.count)[index] - self.first

    def at(self, position: int) -> Row:
        """The row at a position of the shared order, which must be a member."""
        return self.rows[self._number(position)]

    def members(self, positions: range) -> Sequence[int]:
        """Positions at which the shared order has a row of this stream."""
        return [position for position in positions if 0 <= self._number(position) < len(self.rows)]


def mix(parts: Sequence[tuple[str, Sequence[Row]]], *, per_step: int, seed: int, total: int) -> list[Stream]:
    """Streams of named rows that are shuffled together; one part alone is an ordinary stream."""
    if len(parts) == 1:
        name, rows = parts[0]
        return [Stream(name, rows, per_step=per_step, seed=seed, total=total)]
    count = sum(len(rows) for _, rows in parts)
    firsts = [sum(len(rows) for _, rows in parts[:k]) for k in range(len(parts))]
    return [
        MixedStream(name, rows, first=first, count=count, per_step=per_step, seed=seed, total=total)
        for first, (name, rows) in zip(firsts, parts, strict=True)
    ]


class StageStreams:
    """The streams of a stage: this rank's micro-batches step by step, the first stream first."""

    def __init__(
        self,
        streams: Sequence[Stream],
        encoder: Encoder,
        *,
        micro_batch: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
    ) -> None:
        """`workers` threads encode the rows of the coming step; results do not depend on them."""
        self.streams = {stream.name: stream for stream in streams}
        if len(self.streams) != len(streams):
            raise DataError("two streams have one name", where=", ".join(s.name for s in streams))
        self.encoder, self.micro_batch, self.rank, self.world = encoder, micro_batch, rank, world
        self._cursors = dict.fromkeys(self.streams, 0)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="rows") if workers else None
        self._ahead: dict[tuple[str, int], Future[Sample]] = {}
        self._local = threading.local()
        # A fast tokenizer must not be used by two threads at once, so each has its own copy.
        self._copies = [copy.deepcopy(encoder) for _ in range(workers)]

    @property
    def cursors(self) -> dict[str, int]:
        """Rows drawn so far, by stream."""
        return dict(self._cursors)

    def seek(self, cursors: Mapping[str, int]) -> None:
        """Continue at saved positions. Raises StateError when they are of other streams."""
        if set(cursors) != set(self.streams):
            raise StateError(
                f"saved positions are of streams {sorted(cursors)}, the stage has {sorted(self.streams)}",
                where="streams",
                fix="resume with the methods the stage was started with",
            )
        self._forget()
        self._cursors = {name: int(cursors[name]) for name in self.streams}

    def next_step(self) -> list[Batch]:
        """This rank's micro-batches of the coming step, stream by stream in the given order.

        Every rank gets equally many; one without rows left gets a row that nothing is supervised of.
        """
        batches = []
        for stream in self.streams.values():
            positions = stream.step(self._cursors[stream.name])
            members = stream.members(positions)
            for part in self._parts(stream, members):
                batches.append(self._batch(stream, part, ghost=members[:1]))
            self._cursors[stream.name] = positions.stop
        self._look_ahead()
        return batches

    def largest_batch(self) -> Batch:
        """The micro-batch with the longest rows of any stream, for a rehearsal.

        Rows are ranked by characters and pictures; only the longest candidates are encoded.
        """
        best: Batch | None = None
        for stream in self.streams.values():
            if not stream.rows:
                continue
            rows = longest(stream.rows, max(4 * self.micro_batch, 16))
            samples = sorted((self.encoder.encode(row) for row in rows), key=lambda s: -len(s.input_ids_T))
            size = min(self.micro_batch, stream.per_step)
            batch = collate(samples[:size], stream=stream.name, pad_id=self.encoder.pad_id)
            if best is None or batch.input_ids_BT.numel() > best.input_ids_BT.numel():
                best = batch
        if best is None:
            raise DataError("the stage has no stream", where="streams")
        return best

    def rows_of(self, source: str | Sequence[Row], *, limit: int | None = None) -> Sequence[Row]:
        """Rows of a stream in stored order, or the given rows; at most `limit`. Raises DataError for an unknown stream."""
        if isinstance(source, str) and source not in self.streams:
            raise DataError(
                f"there is no stream '{source}' in this stage", where="streams", fix=f"{sorted(self.streams)}"
            )
        return (self.streams[source].rows if isinstance(source, str) else source)[:limit]

    def batches(self, source: str | Sequence[Row], *, rows: int, limit: int | None = None) -> Iterator[Batch]:
        """Batches of so many rows of a stream or of a list, in stored order, the same on every rank."""
        for whole, _ in self.shares(source, rows=rows, limit=limit, share=False):
            yield whole

    def shares(
        self, source: str | Sequence[Row], *, rows: int, limit: int | None = None, share: bool = True
    ) -> Iterator[tuple[Batch, Batch]]:
        """Whole batches, and this rank's rows of each (with `share`, else all of them).

        A rank for which a batch has no row gets one that nothing is supervised of, so that all ranks run equally many passes.
        """
        every = self.rows_of(source, limit=limit)
        name = source if isinstance(source, str) else "rows"
        for start in range(0, len(every), rows):
            samples = [self.encoder.encode(row) for row in every[start : start + rows]]
            whole = collate(samples, stream=name, pad_id=self.encoder.pad_id)
            if not share or self.world == 1:
                yield whole, whole
                continue
            mine = samples[self.rank :: self.world] or [unsupervised(samples[0])]
            yield whole, collate(mine, stream=name, pad_id=self.encoder.pad_id)

    def close(self) -> None:
        """Stop the worker threads."""
        self._forget()
        if self._pool:
            self._pool.shutdown(wait=True, cancel_futures=True)

    # ---- steps ------------------------------------------------------------------------------------------------------
    def _parts(self, stream: Stream, positions: Sequence[int]) -> list[list[int]]:
        """This rank's positions, cut into micro-batches.

        Rows of a step are sorted by length first: rows of one micro-batch need little padding, ranks get equal work.
        """
        ordered = sorted(positions, key=lambda position: (-row_length(stream.at(position)), position))
        count = -(-len(ordered) // (self.world * self.micro_batch))
        lengths = [row_length(stream.at(position)) for position in ordered]
        mine = [ordered[index] for index in even_chunks(lengths, self.world)[self.rank]]
        return [mine[k * self.micro_batch : (k + 1) * self.micro_batch] for k in range(count)]

    def _batch(self, stream: Stream, positions: Sequence[int], *, ghost: Sequence[int]) -> Batch:
        samples = [self._sample(stream, position) for position in positions]
        if not samples:
            samples = [unsupervised(self.encoder.encode(stream.at(ghost[0])))]
        return collate(samples, stream=stream.name, pad_id=self.encoder.pad_id)

    def _sample(self, stream: Stream, position: int) -> Sample:
        waiting = self._ahead.pop((stream.name, position), None)
        return waiting.result() if waiting else self.encoder.encode(stream.at(position))

    def _look_ahead(self) -> None:
        if self._pool is None:
            return
        for stream in self.streams.values():
            for part in self._parts(stream, stream.members(stream.step(self._cursors[stream.name]))):
                for position in part:
                    row = stream.at(position)
                    self._ahead[stream.name, position] = self._pool.submit(self._encode_in_thread, row)

    def _encode_in_thread(self, row: Row) -> Sample:
        if not hasattr(self._local, "encoder"):
            self._local.encoder = self._copies.pop()
        return self._local.encoder.encode(row)

    def _forget(self) -> None:
        for future in self._ahead.values():
            future.cancel()
        self._ahead.clear()


def unsupervised(sample: Sample) -> Sample:
    """The same row with nothing to learn from it."""
    return replace(sample, labels_T=torch.full_like(sample.labels_T, IGNORE))


def even_chunks(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Split the indices of descending `lengths` into `count` chunks of equally many and nearly equal sums.

    Greedy: each index goes to the shortest chunk that is not full. Numbers that do not divide are dealt out.
    """
    if len(lengths) % count:
        return [list(range(len(lengths)))[start::count] for start in range(count)]
    chunks: list[list[int]] = [[] for _ in range(count)]
    sums = [0] * count
    for index, length in enumerate(lengths):
        target = min((k for k in range(count) if len(chunks[k]) * count < len(lengths)), key=lambda k: sums[k])
        chunks[target].append(index)
        sums[target] += length
    return chunks
