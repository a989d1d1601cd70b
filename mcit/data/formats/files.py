"""The elements of a source, whatever kind of file it is, and the files whose checksums are its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mcit.core.errors import DataError
from mcit.core.files import digest_of, sha256_file
from mcit.data.formats.element import Element
from mcit.data.formats.jsonfile import json_elements
from mcit.data.formats.tables import is_table, table_elements, table_files


def elements(path: Path | str) -> Iterator[Element]:
    """One by one, in the file's order. Raises DataError for a file that cannot be read."""
    path = Path(path)
    return table_elements(path) if is_table(path) else json_elements(path)


def checksum(path: Path | str) -> str:
    """sha256 of a source's file, or over those of its files. Raises DataError when one cannot be read."""
    path = Path(path)
    try:
        if not path.is_dir():
            return sha256_file(path)
        return digest_of({file.name: sha256_file(file) for file in table_files(path)})
    except OSError as error:
        raise DataError(
            f"source file cannot be read ({error.strerror})", where=str(path), fix="check the path in the recipe"
        ) from None
