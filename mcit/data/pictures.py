"""The pictures a built data folder refers to, as part of its identity: which files its rows name, and what is in them.

``pictures.jsonl``: one line ``[number of the source, path below its image root, sha256]`` for each picture outside the
folder, sorted; the sha256 of a picture that was missing is null. Rows that were dropped count too, since a repaired picture
brings them back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from mcit.core.errors import DataError
from mcit.core.files import canonical_json
from mcit.core.hashes import sha256_files
from mcit.data.images import resolve_below

FILE = "pictures.jsonl"
Roots = Mapping[str, str | None]
"""Image root by number of the source; None where the pictures lie in the folder itself."""


def lines(pictures: Mapping[tuple[str, str], str | None], numbers: Mapping[str, str], roots: Roots) -> str:
    """Content of the file, from sha256 by (root, path) and the numbers of the roots."""
    entries = ((numbers[root], path, digest) for (root, path), digest in pictures.items())
    return "".join(canonical_json(entry) + "\n" for entry in sorted(entries) if roots[entry[0]] is not None)


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
