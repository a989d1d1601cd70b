"""The pictures a built data folder refers to, as part of its identity: which files its rows name, and what is in them.

``pictures.jsonl``: one line ``[number of the source, path below its image root, sha256]`` for each picture outside the
folder, in the order of their first use; the sha256 of a picture that was missing is null. Rows that were dropped count too,
since a repaired picture brings them back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mcit.core.errors import DataError
from mcit.core.files import canonical_json
from mcit.core.hashes import sha256_files
from mcit.data.images import resolve_below

FILE = "pictures.jsonl"
Roots = Mapping[str, str | None]
"""Image root by number of the source; None where the pictures lie in the folder itself."""


class PictureList:
    """The pictures that rows name, in the order of their first use, with checksums; on disk but for eight bytes each."""

    def __init__(self, path: Path, names: Mapping[str, str]) -> None:
        """`names` are the roots' names by their path."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._names = path, names
        self._file = open(path, "w", encoding="utf-8")
        self.keys = np.empty(0, np.int64)

    def add(self, root: str, path: str, digest: str | None) -> None:
        """Note a picture; None where there is no file to read."""
        self._file.write(canonical_json([self._names[root], path, digest]) + "\n")

    def close(self, keys: NDArray[np.int64]) -> None:
        """End the list; `keys` are 64 bits of each picture's place, in the order of the list."""
        self._file.close()
        self.keys = keys

    def write(self, path: Path, used: NDArray[np.int64], roots: Roots) -> None:
        """Write those whose key is in `used` and that lie outside the built folder."""
        wanted = np.isin(self.keys, used)
        with open(self._path, encoding="utf-8") as listed, open(path, "w", encoding="utf-8") as out:
            for line, keep in zip(listed, wanted, strict=True):
                if keep and roots[json.loads(line)[0]] is not None:
                    out.write(line)


def outside(roots: Roots) -> bool:
    """Whether any source of a data set has its pictures outside the built folder."""
    return any(root is not None for root in roots.values())


def unchanged(folder: Path, roots: Roots) -> bool:
    """Whether every picture of a built folder is below `roots` with the content it had; one pass, memory stays flat."""
    if not outside(roots):
        return True
    entries, again = _entries(folder), _entries(folder)
    found = sha256_files(located(roots[number] or "", path) for number, path, _ in entries)
    return all(now == before for now, (_, _, before) in zip(found, again, strict=True))


def located(root: str, path: str) -> Path:
    """The picture's file; where the path leads out of its root, one that does not exist."""
    try:
        return resolve_below(root, path, where=FILE)
    except DataError:
        return Path(root) / FILE / "outside"


def _entries(folder: Path) -> Iterator[tuple[str, str, str | None]]:
    with open(folder / FILE, encoding="utf-8") as file:
        for line in file:
            number, path, digest = json.loads(line)
            yield number, path, digest
