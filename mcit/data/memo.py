"""What an encoder has made already: rows as tokens, pictures as values, in a bounded part of memory.

Rows come again in the next epoch, at the next validation, probe and evaluation, and rows of one picture decode and process
it once. A row is known by what it says and by its pictures' files (path, size, time of change, inode). What does not fit puts
out something else at random: rows come round in turns, and the oldest would be the next one asked for.

A processor that gives other values for the same row is found out with the first row, and nothing is kept.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import random
import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from mcit.core.types import Row, Sample
from mcit.data.images import resolve_below

LIMIT = 64 << 20
"""Bytes of everything that is kept."""
_ENTRY = 1024
"""Bytes that an entry takes beside its values, about."""
_T = TypeVar("_T")


class Store:
    """Values by key, at most so many bytes of them; threads may share it."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit, self._held = limit, 0
        self._entries: dict[Any, tuple[int, Any, int]] = {}
        """Place in the list of keys, value, bytes."""
        self._keys: list[Any] = []
        self._draw, self._lock = random.Random(0), threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def held(self) -> int:
        """Bytes of what is kept."""
        return self._held

    def get(self, key: Any) -> Any:
        """The value, or None."""
        with self._lock:
            entry = self._entries.get(key)
        return None if entry is None else entry[1]

    def put(self, key: Any, value: Any, size: int) -> None:
        """Keep a value of so many bytes, in the place of others where there is no room."""
        size += _ENTRY
        with self._lock:
            if key in self._entries or size > self._limit:
                return
            while self._held + size > self._limit:
                self._drop(self._keys[self._draw.randrange(len(self._keys))])
            self._entries[key] = (len(self._keys), value, size)
            self._keys.append(key)
            self._held += size

    def clear(self) -> None:
        """Keep nothing of what is there."""
        with self._lock:
            self._entries.clear()
            self._keys.clear()
            self._held = 0

    def _drop(self, key: Any) -> None:
        place, _, size = self._entries.pop(key)
        last = self._keys.pop()
        if last is not key:
            self._keys[place] = last
            self._entries[last] = (place, *self._entries[last][1:])
        self._held -= size


@dataclass(frozen=True, slots=True)
class _Known:
    """A sample without its row and without the values of its pictures."""

    sample: Sample
    pictures: bytes | None


class Memo:
    """Of one encoder and its copies in threads."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.store = Store(limit)
        self.note = ""
        """Why nothing is kept; empty while it is."""
        self._tried = False
        self._name = ""
        self._local = threading.local()

    def __deepcopy__(self, memo: Any) -> Memo:
        return self

    def sample(self, kind: str, row: Row, make: Callable[[Row], Sample]) -> Sample:
        """What `make` gives for a row, now or before; `kind` tells the functions of an encoder apart."""
        pictures = None if self.note else pictures_key(row)
        if self.note or (row.images and pictures is None):
            return make(row)
        key = (kind, _digest(row.turns, row.encoding, pictures))
        known, values = self.store.get(key), self.store.get(("values", pictures))
        if known is not None and (values is not None or pictures is None):
            return replace(known.sample, row=row, pixels={**known.sample.pixels, **(values or {})})
        self._local.making = row, pictures
        try:
            made = make(row)
            if not self._tried and pictures is not None:
                self._try(made, row, make)
        finally:
            self._local.making = None
        if not self.note:
            self._keep(key, made, pictures)
        return made

    def pictures(self, row: Row, load: Callable[[], list[Image.Image]]) -> list[Image.Image]:
        """The decoded pictures of a row."""
        return self._once("decoded", row, load, lambda found: sum(3 * one.width * one.height for one in found))

    @contextmanager
    def showing(self, row: Row) -> Iterator[None]:
        """The processor is called with the pictures of a row."""
        self._local.row = row
        try:
            yield
        finally:
            self._local.row = None

    def attach(self, processor: Any) -> None:
        """Let the processor process the pictures that it is shown once; one that goes another way about it does so still."""
        self._name = type(processor).__name__
        own = getattr(processor, "_process_images", None)
        if own is not None:
            processor._process_images = functools.partial(_processed, self, own)

    def processed(self, process: Callable[[], Any]) -> Any:
        """What the processor makes of the pictures that it is shown."""
        row = getattr(self._local, "row", None)
        return process() if row is None else self._once("processed", row, process, _bytes)

    def _once(self, kind: str, row: Row, make: Callable[[], _T], size: Callable[[_T], int]) -> _T:
        making, known = getattr(self._local, "making", None) or (None, None)  # the row that this thread makes
        pictures = None if self.note else known if making is row else pictures_key(row)
        found = None if pictures is None else self.store.get((kind, pictures))
        if found is not None:
            out: _T = _apart(found)
            return out
        made = make()
        if pictures is not None:
            self.store.put((kind, pictures), _apart(made), size(made))
        return made

    def _try(self, made: Sample, row: Row, make: Callable[[Row], Sample]) -> None:
        self._tried = True
        self.store.clear()  # also what the processor made of this row's pictures
        again = make(row)
        if not _same(made, again):
            self.note = f"{self._name} gives other values for the same row, so that rows are encoded anew each time"
            self.store.clear()

    def _keep(self, key: Any, made: Sample, pictures: bytes | None) -> None:
        """The sample, and the values of its pictures once for all rows that show them."""
        own = {name: value for name, value in made.pixels.items() if name in made.token_keys or pictures is None}
        shared = {name: value for name, value in made.pixels.items() if name not in own}
        known = self.store.get(("values", pictures))
        if known is not None and not _alike(known, shared):
            return  # the text has a part in them
        tokens = [made.input_ids_T, made.labels_T, *own.values(), *([] if made.image_T is None else [made.image_T])]
        self.store.put(key, _Known(replace(made, pixels=own), pictures), _bytes(tokens))
        if pictures is not None:
            self.store.put(("values", pictures), shared, _bytes(shared))


def pictures_key(row: Row) -> bytes | None:
    """Digest of a row's picture files and of what is done to them; None without pictures. Raises DataError as they do."""
    if not row.images:
        return None
    seen = []
    for name in row.images:
        path = resolve_below(row.root, name, where=row.where)
        try:
            found = path.stat()
        except OSError:
            return None  # who opens it says so
        seen.append((str(path), found.st_size, found.st_mtime_ns, found.st_ino))
    return _digest(seen, row.encoding)


def _digest(*parts: Any) -> bytes:
    return hashlib.blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _processed(memo: Memo, own: Callable[..., Any], images: Any, **settings: Any) -> Any:
    return memo.processed(lambda: own(images, **settings))


def _apart(value: Any) -> Any:
    """A copy as deep as its containers: processors take entries out of what they are given."""
    if type(value) in (tuple, list):
        return type(value)(map(_apart, value))
    return copy.copy(value) if isinstance(value, MutableMapping) else value


def _bytes(value: Any) -> int:
    """Of the tensors and arrays in a value."""
    if isinstance(value, tuple | list):
        return sum(map(_bytes, value))
    if isinstance(value, Mapping) or hasattr(value, "items"):
        return sum(map(_bytes, dict(value.items()).values()))
    return int(getattr(value, "nbytes", 0))


def _same(one: Sample, other: Sample) -> bool:
    return torch.equal(one.input_ids_T, other.input_ids_T) and _alike(one.pixels, other.pixels)


def _alike(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        value.dtype == other[name].dtype and torch.equal(value, other[name]) for name, value in one.items()
    )
