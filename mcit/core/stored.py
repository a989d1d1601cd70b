"""Files of a run with their checksum: sealed JSON, manifests, and reading that checks schema and checksum.

A file is covered by the manifest of its folder, or it carries its own checksum: the key ``seal`` holds the first 16 hex
digits of the sha256 of the canonical JSON of everything else. Seals find damage and stray edits; whoever wants to forge
a file can compute one.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from mcit.core.errors import StateError
from mcit.core.files import (
    canonical_json,
    digest_of,
    parse_json,
    read_bytes,
    read_lines,
    sha256_bytes,
    sha256_file,
    write_json,
)
from mcit.core.records import Manifest, Record
from mcit.core.types import JsonDict

SEAL = "seal"
MANIFEST = "manifest.json"


# ---- one record ------------------------------------------------------------------------------------------------------
def seal(record: Mapping[str, Any]) -> JsonDict:
    """The record with its checksum."""
    plain: JsonDict = parse_json(canonical_json(record).encode(), where="record")  # as it will be read
    return {**plain, SEAL: digest_of(plain)[:16]}


def unsealed(record: Any) -> JsonDict | None:
    """The record without its checksum; None when that is missing or wrong."""
    if not isinstance(record, dict):
        return None
    rest = {key: value for key, value in record.items() if key != SEAL}
    try:
        return rest if record.get(SEAL) == digest_of(rest)[:16] else None
    except ValueError:  # NaN, or half a surrogate pair: nothing we write
        return None


def valid(model: type[Record], content: Any, *, where: str | Path) -> JsonDict:
    """`content`, if it is what `model` says. Raises StateError naming the file and the first field that is wrong."""
    try:
        _adapter(model).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        what = f"is not {model.what}: {place + ': ' if place else ''}{first['msg'].removeprefix('Value error, ')}"
        raise StateError(what, where=str(where), fix=model.fix) from None
    found: JsonDict = content
    return found


@functools.cache
def _adapter(model: type[BaseModel]) -> TypeAdapter[Any]:
    return TypeAdapter(model)


def write_sealed(path: Path | str, record: Mapping[str, Any]) -> None:
    """Write a record with its checksum, whole or not at all."""
    write_json(path, seal(record))


def read_sealed(path: Path | str, model: type[Record]) -> JsonDict:
    """A record without its checksum. Raises StateError for a file that is missing, damaged or something else."""
    rest = unsealed(parse_json(read_bytes(path), where=str(path)))
    if rest is None:
        what = f"is not {model.what} as it was written: its checksum ({SEAL}) differs"
        raise StateError(what, where=str(path), fix=model.fix)
    return valid(model, rest, where=path)


def read_record(path: Path | str, model: type[Record]) -> JsonDict:
    """A record of a folder whose manifest was checked. Raises StateError for one that is missing or something else."""
    return valid(model, parse_json(read_bytes(path), where=str(path)), where=path)


# ---- lines -----------------------------------------------------------------------------------------------------------
def sealed_line(record: Mapping[str, Any]) -> str:
    """One line with its checksum."""
    return canonical_json(seal(record))


def read_sealed_lines(path: Path | str, *models: type[Record]) -> tuple[list[JsonDict], list[int]]:
    """Lines that fit one of `models`, without their checksums, and the numbers (from 1) of damaged ones.

    A line that a kill tore off at the end of the file is in neither.
    """
    whole: list[JsonDict] = []
    damaged: list[int] = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            rest = unsealed(parse_json(line, where=str(path)))
        except StateError:
            rest = None
        if rest is not None and any(_fits(model, rest) for model in models):
            whole.append(rest)
        else:
            damaged.append(number)
    return whole, damaged


def _fits(model: type[Record], content: JsonDict) -> bool:
    try:
        valid(model, content, where="")
    except StateError:
        return False
    return True


# ---- manifests -------------------------------------------------------------------------------------------------------
def write_manifest(root: Path | str, *, name: str = MANIFEST, extra: Mapping[str, Any] | None = None) -> None:
    """List every file below `root` with size and sha256; written last, so its existence means the rest is whole."""
    root = Path(root)
    files = {
        str(p.relative_to(root)): {"bytes": p.stat().st_size, "sha256": sha256_file(p)}
        for p in sorted(root.rglob("*"))
        if p.is_file() and p != root / name
    }
    write_sealed(root / name, {**(extra or {}), "files": files})


def check_manifest(
    root: Path | str, *, name: str = MANIFEST, model: type[Manifest] = Manifest, unlisted: bool = False
) -> JsonDict:
    """Compare every listed file with its size and sha256; returns the manifest's content.

    Raises StateError that names the first file that is missing, was cut off or was edited, or, unless `unlisted` files
    are allowed, that the manifest does not list.
    """
    root = Path(root)
    content = read_sealed(root / name, model)
    files = content["files"]
    for relative, entry in files.items():
        path = root / relative
        if not path.is_file():
            raise StateError("file listed in the manifest is missing", where=str(path), fix=model.fix)
        _compare(path, entry, size=path.stat().st_size, sha256=sha256_file(path), fix=model.fix)
    if not unlisted:
        for path in sorted(root.rglob("*")):
            relative = path.relative_to(root).as_posix()
            if (path.is_symlink() or not path.is_dir()) and relative not in files and relative != name:
                fix = "move it elsewhere: nothing may be added to the folder"
                raise StateError("file is not listed in the manifest", where=str(path), fix=fix)
    return content


def read_listed(root: Path | str, relative: str, model: type[Record]) -> JsonDict:
    """One JSON file of a folder with a manifest, checked by it; the other files are not read.

    Raises StateError for a file or manifest that is missing, was cut off or was edited.
    """
    path = Path(root) / relative
    return valid(model, parse_json(listed_bytes(root, relative), where=str(path)), where=path)


def listed_bytes(root: Path | str, relative: str) -> bytes:
    """Content of one file of a folder with a manifest, checked by it. Raises StateError as `read_listed`."""
    path = Path(root) / relative
    entry = read_sealed(Path(root) / MANIFEST, Manifest)["files"].get(relative)
    if entry is None:
        raise StateError("file is not listed in the manifest", where=str(path), fix=Manifest.fix)
    data = read_bytes(path)
    _compare(path, entry, size=len(data), sha256=sha256_bytes(data), fix=Manifest.fix)
    return data


def _compare(path: Path, entry: JsonDict, *, size: int, sha256: str, fix: str) -> None:
    if size != entry["bytes"] or sha256 != entry["sha256"]:
        raise StateError(
            f"checksum differs from the manifest: sha256 {sha256[:12]}… ({size} bytes), "
            f"expected {entry['sha256'][:12]}… ({entry['bytes']} bytes)",
            where=str(path),
            fix=fix,
        )
