"""Kills and errors at the n-th file operation of a process, from outside the package.

`Operations` wraps what Python code changes files with: `open` for writing and what it returns, and the functions of `os`. It
counts operations below a folder and at the chosen one ends the process or raises an OSError. Libraries that write by
themselves (Rust, C) are seen only by what Python does around them.

A process started with this folder on PYTHONPATH and ``FAULTPOINTS`` (JSON of `Fault` and folder) in its environment is wrapped
by ``sitecustomize.py``. This file imports the standard library only.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import shutil  # noqa: F401  (it looks at the functions of os when it is imported: before they are wrapped)
import signal
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KILLS = ("before", "inside", "after")
ERRORS = ("ENOSPC", "EIO", "EFBIG")
HOWS = (*KILLS, *ERRORS)
KINDS = frozenset({"create", "write", "truncate", "fsync", "rename", "unlink", "mkdir", "rmdir", "chmod", "link"})
_WRITES = os.O_WRONLY | os.O_RDWR


class Killed(BaseException):
    """Stands for SIGKILL where a test needs its process."""


@dataclass(frozen=True)
class Fault:
    """What happens at which operation, counted from 1."""

    at: int
    how: str = "before"
    """``before``, ``inside`` (half of a write is on disk) or ``after`` it a kill; or the name of an error."""


Look = tuple[Collection[Fault], Callable[[Fault], bool]]
"""Faults, and what is called at the moment of each instead; it says whether the fault shall happen in this process.

The disk is shown before and after an operation; what is left inside one has to happen.
"""


class Operations:
    """Counts file operations below `root` while it is entered; what `fault` says happens at its operation."""

    def __init__(
        self,
        root: Path | str = "/",
        fault: Fault | None = None,
        *,
        kinds: Collection[str] = KINDS,
        kill: Callable[[], Any] | None = None,
        note: Path | None = None,
        look: Look | None = None,
    ) -> None:
        """`kinds`: what counts. `kill` ends the process; raising `Killed` in it makes every later operation raise too.

        `note`: a file outside `root` that lists the operations, one a line. `look` is called at its moments; where it says
        no the process goes on, where it says yes the fault happens and nothing is shown any more.
        """
        self.root = os.path.realpath(root)
        self.seen: list[str] = []
        self.fired = False
        self._fault, self._kinds, self._note = fault, frozenset(kinds), note
        self._moments, self._look = frozenset(look[0]) if look else frozenset(), look[1] if look else None
        self._kill = kill or (lambda: os.kill(os.getpid(), signal.SIGKILL))
        self._lock = threading.RLock()
        self._before: list[tuple[Any, str, Any]] = []
        self._dead = self._looking = False

    def __enter__(self) -> Operations:
        self._open = io.open
        os_open, opened = os.open, self._opened
        self._replace(io, "open", opened)
        self._replace(builtins, "open", opened)

        def low(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if not flags & _WRITES:
                return os_open(path, flags, *args, **kwargs)
            return self._at(
                "create", self._path(path, kwargs.get("dir_fd")), lambda: os_open(path, flags, *args, **kwargs)
            )

        self._replace(os, "open", low)
        for name, kind in (
            ("mkdir", "mkdir"), ("rmdir", "rmdir"), ("unlink", "unlink"), ("remove", "unlink"), ("chmod", "chmod"),
            ("fsync", "fsync"), ("ftruncate", "truncate"), ("truncate", "truncate"), ("rename", "rename"),
            ("replace", "rename"), ("link", "link"), ("symlink", "link"), ("sendfile", "write"),
        ):  # fmt: skip
            self._wrap(name, kind)
        return self

    def __exit__(self, *_: object) -> None:
        for module, name, function in reversed(self._before):
            setattr(module, name, function)
        self._before.clear()

    def _replace(self, module: Any, name: str, new: Any) -> None:
        self._before.append((module, name, getattr(module, name)))
        setattr(module, name, new)

    def _wrap(self, name: str, kind: str) -> None:
        function = getattr(os, name)

        def wrapped(path: Any, *args: Any, **kwargs: Any) -> Any:
            last = args[0] if kind in ("rename", "link") else path
            where = self._path(last, kwargs.get("dst_dir_fd", kwargs.get("dir_fd")))
            return self._at(kind, where, lambda: function(path, *args, **kwargs))

        self._replace(os, name, wrapped)

    def _opened(self, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if not set(mode) & set("wax+"):
            return self._open(file, mode, *args, **kwargs)
        where = self._path(file)
        if isinstance(file, int):  # it was created when the handle was
            return self._watched(self._open(file, mode, *args, **kwargs), where)
        return self._watched(self._at("create", where, lambda: self._open(file, mode, *args, **kwargs)), where)

    def _watched(self, file: Any, where: str) -> Any:
        return _File(file, self, where) if self._counts(where) else file

    def _path(self, path: Any, folder: int | None = None) -> str:
        if isinstance(path, int):
            try:
                return os.readlink(f"/proc/self/fd/{path}")
            except OSError:
                return ""
        text = os.fsdecode(path)
        if folder is not None and not os.path.isabs(text):
            text = os.path.join(self._path(folder), text)
        return os.path.abspath(text)

    def _counts(self, where: str) -> bool:
        return where == self.root or where.startswith(self.root.rstrip("/") + "/")

    def _at(self, kind: str, where: str, act: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        """Count one operation and do it, or what is to happen at it."""
        if self._looking or kind not in self._kinds or not self._counts(where):
            return act()
        with self._lock:
            if self._dead:
                raise Killed
            self.seen.append(f"{kind} {os.path.relpath(where, self.root)}")
            if self._note:
                handle = self._before_os("open")(self._note, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.write(handle, (self.seen[-1] + "\n").encode())
                os.close(handle)
            fault = self._fault if self._fault and self._fault.at == len(self.seen) else self._asked()
            if fault is None:
                return self._shown(act)
            self.fired = True
            if fault.how == "after":
                with contextlib.suppress(OSError):  # it fails, and then the process dies
                    act()
            elif half is not None and fault.how != "before":
                half()
            if fault.how in ERRORS:
                number = getattr(errno, fault.how)
                raise OSError(number, os.strerror(number), where)
            self._dead = True
            self._kill()
        raise Killed

    def _asked(self) -> Fault | None:
        """The fault that this process is to meet now; half a write is one: whoever shows it has flushed too much."""
        for fault in (Fault(len(self.seen), how) for how in ("inside", *ERRORS)):
            if fault in self._moments and self._shows(fault):
                self._moments, self._note = frozenset(), None
                return fault
        return None

    def _shown(self, act: Callable[[], Any]) -> Any:
        """Do an operation, and show the disk before and after it where that is asked for."""
        before, after = Fault(len(self.seen), "before"), Fault(len(self.seen), "after")
        if before in self._moments:
            self._shows(before)
        try:
            return act()
        finally:
            if after in self._moments:
                self._shows(after)

    def _shows(self, moment: Fault) -> bool:
        """Call `look`; what that does counts for nothing."""
        self._looking = True
        try:
            return self._look is not None and self._look(moment)
        finally:
            self._looking = False

    def _before_os(self, name: str) -> Any:
        return next(function for module, known, function in self._before if module is os and known == name)


class _File:
    """A file opened for writing, whose writes count."""

    def __init__(self, file: Any, operations: Operations, where: str) -> None:
        self._file, self._operations, self._where = file, operations, where

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _File:
        self._file.__enter__()
        return self

    def __exit__(self, *error: object) -> Any:
        return self._file.__exit__(*error)

    def __iter__(self) -> Any:
        return iter(self._file)

    def write(self, data: Any) -> Any:
        """The whole of it; half of it where a fault says so."""

        def half() -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        return self._operations._at("write", self._where, lambda: self._file.write(data), half)

    def truncate(self, *args: Any) -> Any:
        """Counted too."""
        return self._operations._at("truncate", self._where, lambda: self._file.truncate(*args))


def installed(setting: dict[str, Any]) -> Operations:
    """Wrap this process for the rest of its life by ``{"root", "at", "how", "note"?}``."""
    fault = Fault(int(setting["at"]), setting["how"]) if setting.get("at") else None
    note = Path(setting["note"]) if setting.get("note") else None
    operations = Operations(setting["root"], fault, note=note)
    operations.__enter__()
    return operations
