"""What faults leave on disk, all taken from one call of a command that is not disturbed itself.

A kill before or after an operation leaves what is on disk then: a copy of the folder. For a kill inside one, or an error, the
process forks there; the fork dies, or meets the error and goes on alone, in a copy of the folder that only it sees in the
folder's place (a mount of its own).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from scripts.inject.faultpoints import Fault, Look

_COPIED = ("before", "after")
_NEW_MOUNTS, _BIND, _ALL_PRIVATE = 0x00020000, 1 << 12, (1 << 14) | (1 << 18)


class States:
    """Folders by fault, each with the text and the exit code of the disturbed process."""

    def __init__(
        self, folder: Path, home: Path, faults: Collection[Fault], start: Callable[[Path, Path, Look], int]
    ) -> None:
        """`start` runs the command in `home` with a log, a note of its operations, and what it is to show.

        Raises RuntimeError when the command fails.
        """
        self.folder, self.home = folder, home
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.note, self._log, self._last = folder / "operations.txt", folder / "log", Path()
        code = start(self._log, self.note, (faults, self._shown))
        if code != 0:
            raise RuntimeError(f"the undisturbed command failed with {code}: see {self._log}")

    def at(self, fault: Fault) -> Path:
        """The folder that a fault leaves."""
        return self.folder / f"{fault.how} {fault.at}"

    def ended(self, fault: Fault) -> tuple[int, str]:
        """Exit code and text of the process that met a fault."""
        if fault.how in _COPIED:
            return -signal.SIGKILL, ""
        return int(self._beside(fault, "code").read_text()), self._beside(fault, "log").read_text()

    def holds(self, fault: Fault) -> bool:
        """Whether the fault could be taken.

        Not where this call had fewer operations than the noted one (what is written by the clock moves their number), nor
        where filelock refuses a lock that was made, and not yet taken, before the fork.
        """
        return self.at(fault).is_dir() and "was inherited across fork" not in self.ended(fault)[1]

    def digest(self, fault: Fault) -> str:
        """Equal for equal folders: names, modes and contents of all files."""
        root, found = self.at(fault), hashlib.sha256()
        for path in sorted(root.rglob("*")):
            mode = path.lstat().st_mode
            found.update(f"{path.relative_to(root)}\0{mode}\0".encode())
            if path.is_file():
                data = path.read_bytes()
                found.update(f"{len(data)}\0".encode() + data)
        return found.hexdigest()

    def _beside(self, fault: Fault, kind: str) -> Path:
        return self.folder / f"{fault.how} {fault.at}.{kind}"

    # ---- inside the command -----------------------------------------------------------------------------------------
    def _shown(self, fault: Fault) -> bool:
        """Keep what a kill leaves; whether this is the fork that meets a fault."""
        if fault.how in _COPIED:
            shutil.copytree(self.home, self.at(fault), symlinks=True, copy_function=self._linked)
            self._last = self.at(fault)
            return False
        shutil.copytree(self.home, self.at(fault), symlinks=True)
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child:
            _, status = os.waitpid(child, 0)
            self._beside(fault, "code").write_text(str(os.waitstatus_to_exitcode(status)))
            return False
        handle = os.open(self._beside(fault, "log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        moved(self.at(fault), self.home)
        return True

    def _linked(self, source: str, target: str) -> None:
        """Copy a file; one that is as in the last copy becomes a link to that."""
        last = self._last / os.path.relpath(source, self.home)
        if self._last.name and last.is_file() and _same(os.stat(source), last.stat()):
            os.link(last, target)
        else:
            shutil.copy2(source, target)


def _same(one: os.stat_result, two: os.stat_result) -> bool:
    return (one.st_size, one.st_mtime_ns, one.st_mode) == (two.st_size, two.st_mtime_ns, two.st_mode)


# ---- a folder that only this process sees ----------------------------------------------------------------------------
def can_move() -> bool:
    """Whether this system lets a process have mounts of its own; asked in a fork."""
    child = os.fork()
    if not child:
        os._exit(0 if _own_mounts() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def moved(copy: Path, home: Path) -> None:
    """Put `copy` in the place of `home` for this process alone; files open for writing there are opened in it."""
    writing = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            path, flags = os.readlink(f"/proc/self/fd/{name}"), fcntl.fcntl(int(name), fcntl.F_GETFL)
            if Path(path).is_relative_to(home) and (flags & os.O_ACCMODE or Path(path).is_dir()):
                writing[int(name)] = path, flags, 0 if Path(path).is_dir() else os.lseek(int(name), 0, os.SEEK_CUR)
    if not _own_mounts() or _libc().mount(os.fsencode(copy), os.fsencode(home), None, _BIND, None):
        raise OSError(ctypes.get_errno(), "no mount of its own")
    for number, (path, flags, at) in writing.items():
        handle = os.open(path, flags & ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC))
        if at:
            os.lseek(handle, at, os.SEEK_SET)
        os.dup2(handle, number, inheritable=False)
        os.close(handle)


def _own_mounts() -> bool:
    libc = _libc()
    return not libc.unshare(_NEW_MOUNTS) and not libc.mount(None, b"/", None, _ALL_PRIVATE, None)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
