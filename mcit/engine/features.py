"""Tensors by key in the cache folder: files that are mapped, shared between runs, bounded, and checked before they are used.

``vision/IDENTITY/KEY.safetensors`` holds one tensor and a checksum over identity, key and bytes, so that a file that was cut
off, edited or put into another folder is made anew. Files are written whole, one process at a time. When the bound is reached,
files that nobody has used since this process began go, the longest unused first; where there are none nothing more is kept,
since pictures come round in turns and whatever went would be the next one asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from pathlib import Path

import filelock
from safetensors import SafetensorError, safe_open
from torch import Tensor, uint8

from mcit.core.errors import StateError
from mcit.core.files import canonical_json, digest_of, explained, remove_temporaries, write_bytes
from mcit.core.paths import cache_dir
from mcit.core.tensorfile import save_tensors
from mcit.core.types import JsonDict

FOLDER = "vision"
_NAME, _COUNT = "features", ".held"
_WAIT_S = 10.0
"""Longest wait for another process that writes."""
_BEGAN = time.time()
_KEPT = 7 / 8
"""Share of the bound that is left in use when files go."""


def held_bytes() -> int:
    """Bytes of what is kept, as the last process that wrote has counted them."""
    return _counted() or 0


def _counted() -> int | None:
    """The same; None where no count can be read."""
    try:
        return int((cache_dir() / FOLDER / _COUNT).read_text())
    except (OSError, ValueError):
        return None


class FeatureStore:
    """One folder of the cache; several processes may use it, and the bound is over all folders beside it."""

    def __init__(self, identity: JsonDict, limit: int) -> None:
        """At most `limit` bytes."""
        self._root = cache_dir() / FOLDER
        self._folder = self._root / digest_of(identity)[:32]
        self._limit = limit
        self._sound: set[str] = set()
        self._sure = False
        self.note = ""
        """Why nothing more is kept; empty while it is."""

    def get(self, key: str) -> Tensor | None:
        """The tensor, mapped from its file; None where there is none or it cannot be used."""
        file = self._file(key)
        try:
            with safe_open(str(file), framework="pt") as opened:
                value: Tensor = opened.get_tensor(_NAME)
                said = (opened.metadata() or {}).get("format")
        except (OSError, SafetensorError):
            return None
        if key not in self._sound:
            if said != self._checksum(key, value):
                return None
            self._sound.add(key)
        with contextlib.suppress(OSError):
            os.utime(file)
        return value

    def put(self, key: str, value: Tensor) -> None:
        """Keep a tensor of the host; a cache that cannot be written only costs time."""
        if self.note:
            return
        try:
            with explained(self._root):
                self._root.mkdir(parents=True, exist_ok=True)
                with filelock.FileLock(str(self._root / ".lock"), timeout=_WAIT_S):
                    held = self._room(value.nbytes)
                    if held is not None:
                        file, before = self._file(key), 0
                        with contextlib.suppress(OSError):
                            before = file.stat().st_size
                        save_tensors(file, {_NAME: value}, note=self._checksum(key, value), durable=False)
                        self._count(held + file.stat().st_size - before)
        except (StateError, OSError) as error:
            self.note = error.what if isinstance(error, StateError) else f"{type(error).__name__}: {error}"
            return
        if held is None:
            self.note = "it is full"

    def _file(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"

    def _checksum(self, key: str, value: Tensor) -> str:
        named = canonical_json([self._folder.name, key, str(value.dtype), list(value.shape)])
        digest = hashlib.blake2b(named.encode(), digest_size=16)
        digest.update(value.contiguous().flatten().view(uint8).numpy().data)
        return digest.hexdigest()

    # ---- the bound, under the lock ----------------------------------------------------------------------------------
    def _room(self, size: int) -> int | None:
        """Bytes held once there is room for so many more; None where there is none."""
        held = _counted() if self._sure else None
        if held is None:  # a process that was killed may have left its file uncounted
            remove_temporaries(self._root)
            held = sum(seen.st_size for _, seen in self._files())
            self._sure = True
        return held if held + size <= self._limit else self._after_removal(size)

    def _after_removal(self, size: int) -> int | None:
        files = sorted(self._files(), key=lambda item: item[1].st_mtime_ns)
        held = sum(seen.st_size for _, seen in files)
        for file, seen in files:
            if seen.st_mtime >= _BEGAN or held + size <= self._limit * _KEPT:
                break
            file.unlink(missing_ok=True)
            held -= seen.st_size
        self._count(held)
        return held if held + size <= self._limit else None

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        found = []
        for file in self._root.glob("*/*.safetensors"):
            with contextlib.suppress(OSError):
                found.append((file, file.stat()))
        return found

    def _count(self, held: int) -> None:
        write_bytes(self._root / _COUNT, str(held).encode(), durable=False)
