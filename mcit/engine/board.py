"""Where the ranks of a command leave word: who they are, and the first error, which is the one a user is told.

A rank that fails alone cannot tell the others through a collective that they are not in. It writes
``error-rank-XXX.json`` into a folder all ranks of a machine see and ends; a thread of every other rank looks there and
ends its process too, so that nobody waits for a time-out. The rank that makes ``first`` is the one that is told.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

from mcit.core.errors import McitError, StateError, TrainingError
from mcit.core.files import read_json, write_json
from mcit.core.ranks import error_json, named
from mcit.core.types import JsonDict

FOLDER = "MCIT_BOARD"
"""Names the board's folder to the ranks that ``mcit --nproc`` starts; may be set by hand to watch them."""
PARENT = "MCIT_PARENT"
"""Process id of the ``mcit --nproc`` that started the ranks; when it is gone they end."""
LOOK_S = 0.5
GRACE_S = 4.0
"""Seconds that a rank has to end by itself after another one has failed."""
_LOST = ("connection", "closed by peer", "socket", "nccl", "gloo", "remote process", "broken pipe")


class Board:
    """A folder for the errors of one command's ranks."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder, self._rank = Path(folder), rank

    def sign_in(self) -> None:
        """Leave this rank's process id, once its signal handlers are in place."""
        write_json(self.folder / f"rank-{self._rank:03d}.json", {"pid": os.getpid(), "rank": self._rank})

    def pids(self) -> dict[int, int]:
        """Process ids by rank, of the ranks that signed in."""
        found = {}
        for path in sorted(self.folder.glob("rank-*.json")):
            with contextlib.suppress(StateError, KeyError):
                record = read_json(path)
                found[int(record["rank"])] = int(record["pid"])
        return found

    def post(self, record: JsonDict) -> bool:
        """Leave an error; True for the first one, which is to be told."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"error-rank-{self._rank:03d}.json"
        write_json(path, {**record, "time": time.time()})
        first = self.folder / "first.json"
        try:
            os.link(path, first)  # whole or absent, and once
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links: the smallest rank's claim may be read twice, none is lost
            if first.exists():
                return False
            write_json(first, read_json(path))
        return True

    def first(self) -> JsonDict | None:
        """The first error."""
        path = self.folder / "first.json"
        if not path.is_file():
            return None
        record: JsonDict = read_json(path)
        return record

    def wait_for_first(self, seconds: float) -> JsonDict | None:
        """The first error, if there is one within some seconds."""
        end = time.monotonic() + seconds
        while (found := self.first()) is None and time.monotonic() < end:
            time.sleep(0.05)
        return found

    def posted(self) -> list[JsonDict]:
        """All errors, earliest first."""
        found = [read_json(path) for path in self.folder.glob("error-rank-*.json")]
        return sorted(found, key=lambda record: float(record["time"]))

    def clear(self) -> None:
        """Take down what an earlier command left."""
        for pattern in ("error-rank-*.json", "first.json", "rank-*.json"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)

    def watch(self) -> None:
        """End this process when another rank has failed or the starting command is gone; a thread looks twice a second."""
        threading.Thread(target=self._watch, name="board", daemon=True).start()

    def _watch(self) -> None:
        parent = int(os.environ.get(PARENT, "0"))
        while True:
            time.sleep(LOOK_S)
            if parent and os.getppid() != parent:
                os._exit(1)
            with contextlib.suppress(OSError, StateError):
                found = self.first()
                if found is not None and found["rank"] != self._rank:
                    time.sleep(GRACE_S)
                    os._exit(int(found["exit"]))


def explained(error: Exception, *, rank: int, timeout: float) -> tuple[Exception, str]:
    """What a failed collective means: ``timeout``, ``echo`` of another rank's end, or nothing known.

    torch tells a time-out and a lost peer by RuntimeErrors of many texts. Anything else is returned as it is.
    """
    if isinstance(error, McitError) or not isinstance(error, (RuntimeError, OSError)):
        return error, ""
    text = str(error).lower()
    if "timed out" in text or "timeout" in text:
        return TrainingError(
            f"the other ranks did not answer within engine.timeout = {timeout:g} s: one of them hangs or is too slow",
            where=f"rank {rank}",
            fix="run the same command again to continue; if the work of one rank takes longer than that, raise engine.timeout",
        ), "timeout"
    if any(word in text for word in _LOST):
        return TrainingError(
            "another rank ended without a message (killed, out of memory, or its machine is gone)",
            where=f"rank {rank}",
            fix="look at the logs of the other ranks; run the same command again to continue",
        ), "echo"
    return error, ""


def record_of(error: BaseException, *, rank: int, log: Path | None = None, agreed: bool = False) -> JsonDict:
    """An error for the board: the rank named unless all ranks agree, and where the traceback is if it was unforeseen."""
    record = error_json(error, rank=rank)
    if not isinstance(error, McitError):
        record["unforeseen"] = True
        if log is not None:
            record["problems"][0]["fix"] = f"traceback in {log}"
    return record if agreed else named(record)
