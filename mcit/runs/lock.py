"""One writer per run. The lock dies with its process, so a killed run needs no cleaning up."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from mcit.core.errors import StateError
from mcit.core.files import explained
from mcit.core.records import Holder
from mcit.core.stored import read_sealed, write_sealed
from mcit.core.types import JsonDict


class RunLock:
    """Exclusive lock on a run directory; entering twice in one object is allowed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(str(path))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock for a block. Raises StateError naming the holder when another process has it."""
        with explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(blocking=False)
            except Timeout:
                raise self._refusal() from None
        try:
            if self._lock.lock_counter == 1:
                write_sealed(self._holder_file, {"pid": os.getpid(), "host": socket.gethostname()})
            yield
        finally:
            if self._lock.lock_counter == 1:
                with contextlib.suppress(OSError):
                    self._holder_file.unlink()
            self._lock.release()

    def holder(self) -> JsonDict | None:
        """Who holds the lock by its own record, without touching the lock; None if nobody or a dead process."""
        found = self._record()
        if found is None or (found["host"] == socket.gethostname() and not _alive(found["pid"])):
            return None
        return found

    # Beside the lock and not in it: every attempt to lock opens the lock file with O_TRUNC.
    @property
    def _holder_file(self) -> Path:
        return self.path.with_name(self.path.name + ".json")

    def _record(self) -> JsonDict | None:
        try:
            return read_sealed(self._holder_file, Holder)
        except StateError:
            return None

    def _refusal(self) -> StateError:
        found = self._record()
        who = f"process {found['pid']} on {found['host']}" if found else "another process"
        return StateError(
            f"the run is being written by {who}",
            where=str(self.path),
            fix="wait until it ends, or stop it; the lock goes with its process",
        )


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
