"""What took long to find out, kept in the cache as JSON under everything that it follows from; what cannot be used is none."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mcit
from mcit.core.errors import McitError
from mcit.core.files import digest_of, read_json, sha256_file, write_json
from mcit.core.paths import cache_dir
from mcit.core.types import JsonDict


class Entries:
    """A folder of the cache. Several processes may use it; the oldest entries beyond `most` are removed."""

    def __init__(self, name: str, *, most: int) -> None:
        self._name, self._most = name, most

    def get(self, identity: JsonDict) -> Any:
        """What is kept under an identity; None where nothing is, or it was cut off or edited."""
        with contextlib.suppress(McitError, KeyError, TypeError):
            content = read_json(self._file(identity))
            if content["digest"] == digest_of(content["found"]):
                return content["found"]
        return None

    def put(self, identity: JsonDict, found: Any) -> None:
        """Keep JSON under an identity; a cache that cannot be written only costs time."""
        file = self._file(identity)
        with contextlib.suppress(McitError, OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, {"digest": digest_of(found), "found": found})
            files = sorted(file.parent.glob("*.json"), key=lambda f: f.stat().st_mtime)
            for old in files[: max(0, len(files) - self._most)]:
                old.unlink(missing_ok=True)

    def _file(self, identity: JsonDict) -> Path:
        return cache_dir() / self._name / f"{digest_of(identity)}.json"


@functools.cache
def code_digest(*packages: str) -> str:
    """Digest of the source of some of our packages."""
    root = Path(mcit.__file__).parent
    files = [f for package in packages for f in sorted((root / package).rglob("*.py"))]
    return digest_of({f.relative_to(root).as_posix(): sha256_file(f) for f in files})


def versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
