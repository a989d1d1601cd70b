"""sha256 of files that others own, such as pictures and weights: every byte is read once, then known by size and times.

What was read is kept in the cache under path, size, time of the last write, time of the last change of the inode (no program
can set that one back) and inode. Inside `reading_all` kept hashes of other processes do not count: everything is read.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mcit.core.files import sha256_file
from mcit.core.paths import cache_dir

Stamp = tuple[str, int, int, int, int, int]
"""Path, size, mtime and ctime in ns, inode, device."""

_HEX = re.compile(r"[0-9a-f]{64}")
_TOGETHER = 512  # speed: files asked for at once
_SETTLED_S = 2.0
"""A file changed so shortly before it was read could change again within one tick of the file system's clock: not kept."""
_TABLE = "CREATE TABLE IF NOT EXISTS seen (path TEXT PRIMARY KEY, stamp TEXT NOT NULL, sha256 TEXT NOT NULL)"
_read_all = False


@contextlib.contextmanager
def reading_all(on: bool = True) -> Iterator[None]:
    """In this block (unless `on` is False) a file is read, whatever earlier processes kept about it."""
    global _read_all
    before, _read_all = _read_all, on
    try:
        yield
    finally:
        _read_all = before


def sha256_files(paths: Iterable[Path | str]) -> Iterator[str | None]:
    """Hex sha256 of each file in turn; None for one that is missing, no regular file or unreadable.

    Memory does not grow with the number of files.
    """
    todo = iter(paths)
    with _Kept() as kept, ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 1)) as pool:  # speed: threads
        while part := list(itertools.islice(todo, _TOGETHER)):
            stamps = [_stamp(path) for path in part]
            known: dict[Stamp, str | None] = {} if _read_all else kept.of(s for s in stamps if s is not None)
            unknown = [s for s in stamps if s is not None and s not in known]
            known.update(zip(unknown, pool.map(_sha256, unknown), strict=True))
            kept.add(unknown)
            yield from (None if s is None else known[s] for s in stamps)


def _stamp(path: Path | str) -> Stamp | None:
    try:
        s = os.stat(path)
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(s.st_mode):  # a device or a pipe would never end
        return None
    return os.path.abspath(path), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_dev


@functools.lru_cache(maxsize=1 << 16)  # speed: files kept
def _sha256(stamp: Stamp) -> str | None:
    """Read once per process as long as size and times stay."""
    try:
        return sha256_file(stamp[0])
    except OSError:
        return None


class _Kept:
    """Hashes of earlier processes. A cache that cannot be read or written only costs time."""

    def __init__(self) -> None:
        self._path = cache_dir() / "digests" / "files.sqlite"
        self._began = time.time()
        self._base: sqlite3.Connection | None = None

    def __enter__(self) -> _Kept:
        with self._or_without():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(self._path, timeout=10)  # speed: seconds it waits
            self._base.execute("PRAGMA synchronous=OFF")
            self._base.execute(_TABLE)
        return self

    def __exit__(self, *_: object) -> None:
        if self._base is not None:
            self._base.close()

    def of(self, stamps: Iterable[Stamp]) -> dict[Stamp, str | None]:
        """What is kept about unchanged files."""
        out: dict[Stamp, str | None] = {}
        base = self._base
        if base is None:
            return out
        with self._or_without():
            for s in stamps:
                row = base.execute("SELECT stamp, sha256 FROM seen WHERE path = ?", s[:1]).fetchone()
                if row and row[0] == repr(s[1:]) and _HEX.fullmatch(str(row[1])):
                    out[s] = row[1]
        return out

    def add(self, stamps: Iterable[Stamp]) -> None:
        """Keep what was read of files that stayed as they were while they were read."""
        limit = (self._began - _SETTLED_S) * 1e9
        settled = [s for s in stamps if max(s[2:4]) < limit and _stamp(s[0]) == s]
        rows = [(s[0], repr(s[1:]), digest) for s in settled if (digest := _sha256(s)) is not None]
        with self._or_without():
            if rows and self._base is not None:
                with self._base:
                    self._base.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?, ?)", rows)

    @contextlib.contextmanager
    def _or_without(self) -> Iterator[None]:
        """Go on without the cache when it is read-only or in use; one that is damaged is removed for the next process."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            if self._base is not None:
                self._base.close()
                self._base = None
            if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
                with contextlib.suppress(OSError):
                    self._path.unlink()
