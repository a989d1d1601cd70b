"""The streams of a stage, and the batches of a step: who gets which rows, and how they are put together."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import torch

from mcit.core.errors import DataError, StateError
from mcit.core.types import Batch, Draw, Row, Sample
from mcit.data.collate import collate
from mcit.data.encode import IGNORE, Encoder
from mcit.data.rowset import image_name, longest, row_length
from mcit.data.stream import ChosenStream, Stream

_PROBED = 64
"""Rows that are looked at for one with pictures."""


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
        packs: bool = False,
    ) -> None:
        """`workers` threads encode the rows of the coming step; results do not depend on them.

        With `packs` rows of a step that show the same pictures come into one micro-batch where they fit.
        """
        self.streams = {stream.name: stream for stream in streams}
        if len(self.streams) != len(streams):
            names = ", ".join(s.name for s in streams)
            raise DataError("two streams have one name", where=names, fix="give each stream of a stage its own name")
        for stream in streams:
            if stream.group > micro_batch:
                what = f"{stream.group} rows must share a micro-batch, which takes {micro_batch}"
                fix = f"set engine.micro_batch to {stream.group} or more"
                raise DataError(what, where=f"stream {stream.name}", fix=fix)
        self.encoder, self.micro_batch, self.rank, self.world = encoder, micro_batch, rank, world
        self._packs = packs
        self._cursors = dict.fromkeys(self.streams, 0)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="rows") if workers else None
        self._ahead: dict[tuple[str, int], Future[Sample]] = {}
        self._local = threading.local()
        # A fast tokenizer must not be used by two threads at once, so each has its own copy.
        self._copies = [copy.deepcopy(encoder) for _ in range(workers)]

    def over(self, streams: Sequence[Stream]) -> StageStreams:
        """Other streams for the same ranks and micro-batches, at their beginning; no threads."""
        given = {"micro_batch": self.micro_batch, "rank": self.rank, "world": self.world}
        return StageStreams(streams, self.encoder, **given, packs=self._packs)

    def choose_by(self, choose: Callable[[str, int, int], Sequence[Draw]]) -> None:
        """Who names the rows of a step (stream, rows, size) of the streams whose rows are chosen."""
        for stream in self.streams.values():
            if isinstance(stream, ChosenStream):
                stream.choose = functools.partial(choose, stream.name)

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
            stream.enter(positions)
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
            size = min(self.micro_batch, stream.per_step or self.micro_batch)
            batch = self._collated(stream, samples[:size])
            if best is None or batch.input_ids_BT.numel() > best.input_ids_BT.numel():
                best = batch
        if best is None:
            raise DataError(
                "the stage has no stream", where="streams", fix="give the stage a recipe with training rows"
            )
        return best

    def probe(self) -> Batch | None:
        """Two rows, with pictures if the first ones of a stream have any, to try a layout on; None without rows."""
        first = next((stream for stream in self.streams.values() if stream.rows), None)
        if first is None:
            return None
        rows = sorted(first.rows[:_PROBED], key=lambda row: (not row.images, row_length(row)))[:2]
        return collate([self.encoder.encode(row) for row in rows], stream=first.name, pad_id=self.encoder.pad_id)

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

        Groups of a step are sorted by length first: rows of one micro-batch need little padding, ranks get equal work.
        The stream's last group may be incomplete.
        """
        groups = [positions[start : start + stream.group] for start in range(0, len(positions), stream.group)]
        lengths = {group[0]: [row_length(stream.at(position)) for position in group] for group in groups}
        ordered = sorted(groups, key=lambda group: (-max(lengths[group[0]]), group[0]))
        size = self.micro_batch // stream.group
        count = -(-len(ordered) // (self.world * size))
        if self._packs and stream.group == 1:
            rows = [image_name(stream.at(group[0])) for group in ordered]
            clusters = grouped([group[0] for group in ordered], rows)
            if len(clusters) < len(ordered):
                dealt = deal(clusters, bins=self.world * count, size=size)
                return dealt[self.rank * count : (self.rank + 1) * count]
        chunks = even_chunks([sum(lengths[group[0]]) for group in ordered], self.world)
        mine = [ordered[index] for index in chunks[self.rank]]
        return [[p for group in mine[k * size : (k + 1) * size] for p in group] for k in range(count)]

    def _batch(self, stream: Stream, positions: Sequence[int], *, ghost: Sequence[int]) -> Batch:
        samples = [self._sample(stream, position) for position in positions]
        if not samples:
            samples = [unsupervised(self.encoder.encode(stream.at(ghost[0])))]
        return self._collated(stream, samples)

    def _collated(self, stream: Stream, samples: Sequence[Sample]) -> Batch:
        batch = collate(samples, stream=stream.name, pad_id=self.encoder.pad_id)
        return replace(batch, until=stream.until) if stream.until else batch

    def _sample(self, stream: Stream, position: int) -> Sample:
        waiting = self._ahead.pop((stream.name, position), None)
        sample = waiting.result() if waiting else self.encoder.encode(stream.at(position))
        view = stream.draw(position)[1]
        return replace(sample, view=view) if view else sample

    def _look_ahead(self) -> None:
        if self._pool is None:
            return
        for stream in self.streams.values():
            if not stream.foreseeable:
                continue
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


def grouped(positions: Sequence[int], keys: Sequence[bytes]) -> list[list[int]]:
    """Positions with one key together, in order of first appearance; an empty key is shared with nobody."""
    clusters: dict[bytes | int, list[int]] = {}
    for position, key in zip(positions, keys, strict=True):
        clusters.setdefault(key or position, []).append(position)
    return list(clusters.values())


def deal(clusters: Sequence[Sequence[int]], *, bins: int, size: int) -> list[list[int]]:
    """Put clusters into `bins` of at most `size`, the largest first, each where most room is; what does not fit is cut."""
    out: list[list[int]] = [[] for _ in range(bins)]
    waiting = sorted((list(cluster) for cluster in clusters), key=lambda cluster: -len(cluster))
    while waiting:
        cluster = waiting.pop(0)
        target = min(out, key=len)
        room = size - len(target)
        target += cluster[:room]
        if cluster[room:]:
            waiting.insert(0, cluster[room:])
    return out


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
