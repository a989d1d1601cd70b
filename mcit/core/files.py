"""Durable files: checksums, canonical JSON, and writes that are either whole or absent.

What a kill can leave behind is a hidden temporary file or folder, which `remove_temporaries` finds, or a last line
without its end, which readers leave out and the next `append_line` cuts off.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from mcit.core.errors import StateError

_CHUNK = 1 << 20  # speed: bytes that are read at a time
_WRITABLE = "a writable folder: --runs-dir for runs, MCIT_CACHE for data sets and models"
_PIPED = 64 << 20
"""Bytes that are read of what is no regular file."""
_TEMPORARY = re.compile(r"\.(?P<of>.+)\.[a-z0-9_]{8}\.tmp")


@contextlib.contextmanager
def explained(path: Path | str) -> Iterator[None]:
    """Turn what the operating system refuses (a full disk, a broken one, permissions) into a StateError naming `path`.

    A file that is not there is no business of this: FileNotFoundError passes.
    """
    try:
        yield
    except OSError as error:
        cures = {
            errno.ENOSPC: ("no space left on the disk", "free space there, then run the same command again"),
            errno.EDQUOT: ("the disk quota is used up", "free space there, then run the same command again"),
            errno.EFBIG: ("the file would be larger than allowed here", "raise the limit of file sizes (ulimit -f)"),
            errno.EIO: ("the disk reported an error", "check the disk, then run the same command again"),
            errno.EROFS: ("the folder is read-only", f"choose {_WRITABLE}"),
            errno.ENOTDIR: ("a part of the path is a file", "choose another folder"),
            errno.EACCES: ("permission denied", f"choose {_WRITABLE}, or change its permissions"),
        }
        if isinstance(error, FileNotFoundError) or error.errno is None:
            raise
        what, fix = cures.get(error.errno, (str(error.strerror), "see to that, then run the same command again"))
        raise StateError(what, where=str(error.filename or path), fix=fix) from error


def sha256_bytes(data: bytes) -> str:
    """Hex sha256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path | str) -> str:
    """Hex sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_tree(root: Path | str) -> str:
    """Hex sha256 over names and contents of every file below `root`, in sorted order."""
    root = Path(root)
    entries = {str(p.relative_to(root)): sha256_file(p) for p in sorted(root.rglob("*")) if p.is_file()}
    return digest_of(entries)


def canonical_json(obj: Any, *, indent: int | None = None) -> str:
    """JSON that is equal for equal content: sorted keys, no NaN, sets as sorted lists."""

    def plain(value: Any) -> Any:
        if isinstance(value, (set, frozenset)):
            return sorted(value)
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, Mapping):
            return dict(value)
        if isinstance(value, tuple):
            return list(value)
        raise TypeError(f"{type(value).__name__} cannot be written as JSON")

    return json.dumps(obj, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=indent, default=plain)


def digest_of(obj: Any) -> str:
    """Hex sha256 of the canonical JSON of `obj`."""
    return sha256_bytes(canonical_json(obj).encode())


def fsync_dir(path: Path | str) -> None:
    """Make renames and new names inside a directory durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path | str, data: bytes, *, durable: bool = True) -> None:
    """Write a whole file or nothing: temporary name, fsync, rename.

    One that need not be `durable` is not flushed to disk: after a power failure it may be cut off, so that its reader checks.
    Raises StateError when the disk is full or the folder cannot be written.
    """
    with _whole(Path(path), durable=durable) as file:
        file.write(data)


def copy_file(source: Path | str, target: Path | str) -> None:
    """Copy a whole file or nothing, in pieces. Raises StateError as `write_bytes`."""
    with open(source, "rb") as given, _whole(Path(target)) as file:
        shutil.copyfileobj(given, file, _CHUNK)


@contextlib.contextmanager
def _whole(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """A temporary file beside `path` that becomes it when the block ends well."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                _claim(handle)
                yield file
                file.flush()
                if durable:
                    os.fsync(handle)
                os.chmod(name, 0o644)
                os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        if durable:
            fsync_dir(path.parent)


def write_text(path: Path | str, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: Path | str, obj: Any) -> None:
    """Write canonical, indented JSON, whole or not at all."""
    write_text(path, canonical_json(obj, indent=1) + "\n")


def read_bytes(path: Path | str) -> bytes:
    """Content of a file. Raises StateError for one that is missing or cannot be read."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise StateError("file is missing", where=str(path), fix="restore it, or remove its folder") from None
    except OSError as error:
        raise StateError(f"cannot be read ({error.strerror})", where=str(path), fix="restore it") from None


def read_given(path: Path | str) -> bytes:
    """Content of a file that somebody names, a pipe's too. Raises OSError, also for a device that never ends."""
    with open(path, "rb") as file:
        regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        data = file.read(-1 if regular else _PIPED + 1)
    if not regular and len(data) > _PIPED:
        raise OSError(errno.EFBIG, f"is no regular file and holds more than {_PIPED >> 20} MiB", str(path))
    return data


NOT_JSON = (ValueError, RecursionError)
"""What ``json.loads`` raises for text that is none: no UTF-8, malformed, too long a number, too many levels."""


def parse_json(data: bytes, *, where: str) -> Any:
    """JSON of untrusted bytes. Raises StateError for what is cut off, too deep, too long a number or no JSON at all."""
    try:
        return json.loads(data.decode())
    except NOT_JSON as error:
        raise StateError(
            f"not valid JSON ({error})", where=where, fix="the file was edited or cut off; restore it"
        ) from None


def read_json(path: Path | str) -> Any:
    """Read JSON; a file that is missing, cut off or something else is a StateError that names it."""
    return parse_json(read_bytes(path), where=str(path))


def append_line(path: Path | str, line: str | Callable[[bytes], str]) -> None:
    """Append a line (or several) of JSON and flush it to disk; what a killed writer left of its last line is cut off.

    A function gets the last line that is there (empty if there is none), with no other writer between it and the new one.
    """
    path = Path(path)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b") as file:
            with contextlib.suppress(OSError):  # exports and branches write to a ledger beside its run
                fcntl.flock(file, fcntl.LOCK_EX)
            cut_torn_end(file)
            new = line if isinstance(line, str) else line(_last_line(file))
            file.write(new.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def cut_torn_end(file: BinaryIO) -> bool:
    """Give the last line of a file opened with ``a+b`` its end, or cut it off where it is torn; whether it was torn."""
    end = file.seek(0, os.SEEK_END)
    tail = _tail(file, end)
    if not tail:
        return False
    if is_whole(tail):
        file.write(b"\n")
        return False
    file.truncate(end - len(tail))
    return True


def _tail(file: BinaryIO, end: int) -> bytes:
    """What stands before `end` since the last line's end before it."""
    tail = b""
    for start in (*range(end - _CHUNK, 0, -_CHUNK), 0):
        file.seek(start)
        tail = file.read(end - len(tail) - start) + tail
        if b"\n" in tail:
            break
    return tail.rpartition(b"\n")[2]


def _last_line(file: BinaryIO) -> bytes:
    """The last line of a file whose last line has its end."""
    return _tail(file, max(file.seek(0, os.SEEK_END) - 1, 0))


def is_whole(line: bytes) -> bool:
    """Whether a line is JSON, and so all that was to be written of it."""
    try:
        parse_json(line, where="")
    except StateError:
        return False
    return True


def read_lines(path: Path | str) -> list[bytes]:
    """The lines of a file without their ends; a last one that was torn off is left out. A missing file is empty."""
    if not Path(path).exists():
        return []
    *lines, last = read_bytes(path).split(b"\n")
    return [*lines, last] if is_whole(last) else lines


def fsync_tree(root: Path | str) -> None:
    """Flush every file and directory below `root`."""
    for folder, _, names in os.walk(root):
        for name in names:
            handle = os.open(os.path.join(folder, name), os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        fsync_dir(folder)


@contextlib.contextmanager
def atomic_directory(final: Path | str) -> Iterator[Path]:
    """Yield a hidden directory beside `final`; fsync and rename it when the block ends well, remove it otherwise.

    Raises StateError if `final` exists already.
    """
    final = Path(final)
    if final.exists():
        raise StateError("already exists", where=str(final), fix="remove it or choose another folder")
    with explained(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}.", suffix=".tmp"))
        handle = os.open(work, os.O_RDONLY)
        try:
            _claim(handle)
            os.chmod(work, 0o755)
            yield work
            rename_directory(work, final)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        finally:
            os.close(handle)


def _claim(handle: int) -> None:
    """Mark a temporary file or folder as in use until the handle is closed, or the process ends however it does."""
    with contextlib.suppress(OSError):  # a file system without locks: others may take it for abandoned
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_claimed(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    finally:
        os.close(handle)
    return False


def remove_temporaries(root: Path | str, *, of: str | None = None) -> None:
    """Remove what killed `write_bytes` and `atomic_directory` left below `root`; with `of`, in it and of that name only.

    What a living process still writes stays.
    """
    for folder, folders, names in os.walk(root):
        for name in [*folders, *names]:
            match = _TEMPORARY.fullmatch(name)
            path = Path(folder, name)
            if match and of in (None, match["of"]) and not _is_claimed(path):
                remove(path)
        folders[:] = [] if of is not None else [n for n in folders if not _TEMPORARY.fullmatch(n)]


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it, as far as it goes."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def build_once(final: Path, build: Callable[[Path], None]) -> Path:
    """Fill `final` by `build(work)` unless it is there; two processes that start together build it once.

    Raises StateError when the disk is full or the folder cannot be written.
    """
    import filelock

    if not final.is_dir():
        with explained(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(str(final.with_name(f".{final.name}.lock"))):
                if not final.is_dir():
                    with atomic_directory(final) as work:
                        build(work)
    return final


def rename_directory(work: Path, final: Path) -> None:
    """The commit of this project: fsync everything, rename, fsync the parent."""
    with explained(final):
        fsync_tree(work)
        os.rename(work, final)
        fsync_dir(final.parent)
