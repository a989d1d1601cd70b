"""Durable files: checksums, canonical JSON, and writes that are either whole or absent.

Every write of the run directory goes through this module, so that a test can kill the process at each of them:
with ``MCIT_FAULT_AT=n`` in the environment the n-th durable operation of the process is preceded by SIGKILL.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mcit.core.errors import StateError

_CHUNK = 1 << 20
_operations = 0


def fault_point() -> None:
    """Count one durable operation; kill the process here if a test asked for it."""
    global _operations
    _operations += 1
    if os.environ.get("MCIT_FAULT_AT") == str(_operations):
        os.kill(os.getpid(), signal.SIGKILL)


def operations() -> int:
    """Durable operations this process has made so far (the range of ``MCIT_FAULT_AT``)."""
    return _operations


@contextlib.contextmanager
def explained(path: Path | str) -> Iterator[None]:
    """Turn the operating system's full-disk, read-only, permission and not-a-folder errors into a StateError naming `path`."""
    try:
        yield
    except OSError as error:
        cures = {
            errno.ENOSPC: ("no space left on the disk", "free space there, then run the same command again"),
            errno.EDQUOT: ("the disk quota is used up", "free space there, then run the same command again"),
            errno.EROFS: ("the folder is read-only", "choose a writable folder with --runs-dir"),
            errno.ENOTDIR: ("a part of the path is a file", "choose another folder"),
            errno.EACCES: ("permission denied", "choose a writable folder with --runs-dir, or change its permissions"),
        }
        if error.errno not in cures:
            raise
        what, fix = cures[error.errno]
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


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write a whole file or nothing: temporary name, fsync, rename.

    Raises StateError when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fault_point()
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            fault_point()
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        fsync_dir(path.parent)


def write_text(path: Path | str, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: Path | str, obj: Any) -> None:
    """Write canonical, indented JSON, whole or not at all."""
    write_text(path, canonical_json(obj, indent=1) + "\n")


def read_json(path: Path | str) -> Any:
    """Read JSON; a file that is missing or cut off is a StateError that names it."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise StateError("file is missing", where=str(path), fix="restore it, or remove its folder") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StateError(
            f"not valid JSON ({error})", where=str(path), fix="the file was edited or cut off; restore it"
        ) from None


def append_line(path: Path | str, line: str) -> None:
    """Append one line and flush it to disk. A torn last line is the reader's business (`read_lines`)."""
    path = Path(path)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fault_point()
        with open(path, "a+b") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a torn line of a killed writer: end it, so that ours stays readable
                    file.write(b"\n")
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def read_json_lines(path: Path | str) -> list[Any]:
    """All complete JSON lines of a file; lines torn by a kill are left out. A missing file is empty."""
    path = Path(path)
    if not path.exists():
        return []
    out = []
    for line in path.read_bytes().split(b"\n"):
        with contextlib.suppress(json.JSONDecodeError, UnicodeDecodeError):
            if line.strip():
                out.append(json.loads(line))
    return out


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
        os.chmod(work, 0o755)
        try:
            yield work
            rename_directory(work, final)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise


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
        fault_point()
        os.rename(work, final)
        fault_point()
        fsync_dir(final.parent)


def write_manifest(root: Path | str, *, name: str = "manifest.json", extra: Mapping[str, Any] | None = None) -> None:
    """List every file below `root` with size and sha256; written last, so its existence means the rest is whole."""
    root = Path(root)
    files = {
        str(p.relative_to(root)): {"bytes": p.stat().st_size, "sha256": sha256_file(p)}
        for p in sorted(root.rglob("*"))
        if p.is_file() and p.name != name
    }
    write_json(root / name, {**(extra or {}), "files": files})


def check_manifest(root: Path | str, *, name: str = "manifest.json", ignore: frozenset[str] = frozenset()) -> None:
    """Compare every listed file with its size and sha256.

    Raises StateError that names the first file that is missing, was cut off or was edited.
    """
    root = Path(root)
    for relative, expected in read_json(root / name)["files"].items():
        path = root / relative
        if relative in ignore:
            continue
        fix = "restore the file from a copy, or remove the folder and run again"
        if not path.is_file():
            raise StateError("file listed in the manifest is missing", where=str(path), fix=fix)
        size, sha = path.stat().st_size, sha256_file(path)
        if size != expected["bytes"] or sha != expected["sha256"]:
            raise StateError(
                f"checksum differs from the manifest: sha256 {sha[:12]}… ({size} bytes), "
                f"expected {expected['sha256'][:12]}… ({expected['bytes']} bytes)",
                where=str(path),
                fix=fix,
            )
