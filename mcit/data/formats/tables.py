"""Rows of Parquet files, and of folders that Hugging Face's ``datasets`` saved (Arrow streams), in pieces of some rows.

Needs the extra ``arrow``. Nothing is fetched and no code of a data set runs: only the named files are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mcit.core.errors import DataError
from mcit.core.files import NOT_JSON
from mcit.core.optional import needed
from mcit.core.types import JsonDict
from mcit.data.formats.element import Element

_ROWS = 64
"""Rows that are decoded at once: a row may hold a picture."""


def is_table(path: Path) -> bool:
    """Whether a source is a Parquet or Arrow file, or a folder of them."""
    return path.suffix in (".parquet", ".arrow") or path.is_dir()


def table_files(path: Path) -> list[Path]:
    """The files of a source in order.

    Raises DataError for a folder without any, or one that holds several splits.
    """
    if not path.is_dir():
        return [path]
    if (path / "dataset_dict.json").is_file():
        raise DataError(
            "the folder holds several splits", where=str(path), fix=f"name one of them: {path.name}/{_splits(path)}"
        )
    if (path / "state.json").is_file():
        state = _json(path / "state.json")
        return [_inside(path, str(item["filename"])) for item in state["_data_files"]]
    found = sorted(path.glob("*.parquet"))
    if not found:
        raise DataError(
            "the folder holds no Parquet files and was not written by datasets' save_to_disk",
            where=str(path),
            fix="name the folder with the *.parquet files, or a JSON file",
        )
    return found


def table_elements(path: Path) -> Iterator[Element]:
    """Rows as decoded values, numbered from 1 over all files. Raises DataError for a file that cannot be read."""
    needed("pyarrow", where=str(path))
    import pyarrow

    number = 0
    for file in table_files(path):
        try:
            for batch in _batches(file):
                for value in batch.to_pylist():
                    number += 1
                    yield Element(number, {key: item for key, item in value.items() if item is not None})
        except OSError as error:
            what = f"cannot be read ({error.strerror or error})"
            raise DataError(what, where=str(file), fix="check the path") from None
        except pyarrow.ArrowException as error:
            what = f"is damaged, or not what its name says ({str(error).splitlines()[0]})"
            raise DataError(what, where=str(file), fix="fetch or write it again") from None


def _batches(file: Path) -> Iterator[Any]:
    """Pieces of a file of a bounded number of rows."""
    if file.suffix == ".parquet":
        from pyarrow import parquet

        with parquet.ParquetFile(file) as table:
            yield from table.iter_batches(batch_size=_ROWS)
        return
    import pyarrow

    with pyarrow.memory_map(str(file)) as source:
        reader = _stream(source)
        for batch in reader:
            for start in range(0, batch.num_rows, _ROWS):
                yield batch.slice(start, _ROWS)


def _stream(source: Any) -> Any:
    """Batches of an Arrow stream, or of an Arrow file."""
    import pyarrow

    if source.read(6) == b"ARROW1":
        reader = pyarrow.ipc.open_file(source)
        return (reader.get_batch(k) for k in range(reader.num_record_batches))
    source.seek(0)
    return pyarrow.ipc.open_stream(source)


def _json(path: Path) -> JsonDict:
    """A JSON object. Raises DataError for a file that holds none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, *NOT_JSON):
        found = None
    if not isinstance(found, dict):
        raise DataError("cannot be read as a JSON object", where=str(path), fix="save the data set again")
    return found


def _splits(path: Path) -> str:
    return f"{{{', '.join(str(name) for name in _json(path / 'dataset_dict.json').get('splits', []))}}}"


def _inside(folder: Path, name: str) -> Path:
    if Path(name).name != name:
        raise DataError(
            f"names the file {name!r} outside itself", where=str(folder / "state.json"), fix="save it again"
        )
    return folder / name
