"""Parquet and Arrow rows, as Hugging Face's datasets writes them."""

import io
import json

import datasets
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from mcit.core.errors import DataError
from mcit.data.formats.embedded import Embedded
from mcit.data.formats.files import checksum
from mcit.data.formats.tables import table_elements, table_files
from tests.data.formats.test_embedded import png
from tests.fakes.rows import llava, read_file


def rows(count):
    """Rows with a picture inside, as datasets' Image feature stores it."""
    return [
        {
            **llava(f"r{k}", "<image>\nIs it red?"),
            "image": {"bytes": png((k % 9, 0, 0)), "path": f"{k}.png"},
            "style": None,
        }
        for k in range(count)
    ]


def saved_to_disk(folder, values, *, files=2):
    """A folder of the layout of datasets' save_to_disk: Arrow streams and state.json."""
    folder.mkdir(parents=True)
    names = []
    for number in range(files):
        table = pyarrow.Table.from_pylist(values[number::files])
        names.append(f"data-{number:05d}-of-{files:05d}.arrow")
        with (
            pyarrow.OSFile(str(folder / names[-1]), "wb") as sink,
            pyarrow.ipc.new_stream(sink, table.schema) as writer,
        ):
            writer.write_table(table, max_chunksize=3)
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_parquet_rows_and_their_pictures(tmp_path):
    parquet.write_table(pyarrow.Table.from_pylist(rows(150)), tmp_path / "a.parquet")
    found, problems = read_file(tmp_path / "a.parquet", label="a.parquet", embedded=Embedded(tmp_path / "held"))
    assert not problems and len(found) == 150
    assert found[149].source == "a.parquet:150" and found[149].id == "r149" and found[149].style == ""
    assert found[0].root == str(tmp_path / "held") and found[0].images == found[9].images != found[1].images
    assert len(list((tmp_path / "held").iterdir())) == 9


def test_a_folder_of_parquet_files_is_one_source(tmp_path):
    for number in range(2):
        parquet.write_table(pyarrow.Table.from_pylist([llava(f"{number}")]), tmp_path / f"train-{number}.parquet")
    assert [(e.line, e.value["id"]) for e in table_elements(tmp_path)] == [(1, "0"), (2, "1")]
    before = checksum(tmp_path)
    parquet.write_table(pyarrow.Table.from_pylist([llava("new")]), tmp_path / "train-1.parquet")
    assert checksum(tmp_path) != before


def test_folders_of_datasets(tmp_path):
    folder = saved_to_disk(tmp_path / "set" / "train", rows(10))
    assert [e.value["id"] for e in table_elements(folder)] == [f"r{k}" for k in (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)]
    found, problems = read_file(folder, embedded=Embedded(tmp_path / "held"))
    assert len(found) == 10 and not problems
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(DataError, match="several splits") as caught:
        table_files(tmp_path / "set")
    assert caught.value.fix == "name one of them: set/{train, test}"


def test_a_single_arrow_file(tmp_path):
    table = pyarrow.Table.from_pylist([llava("a"), llava("b")])
    with pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    assert [e.value["id"] for e in table_elements(tmp_path / "a.arrow")] == ["a", "b"]


def test_what_the_library_writes_is_read(tmp_path):
    picture = Image.open(io.BytesIO(png()))
    given = [{"id": str(k), "images": [picture], "messages": [
        {"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "red"}]} for k in range(3)]  # fmt: skip
    datasets.Dataset.from_list(given).save_to_disk(str(tmp_path / "set"))
    found, problems = read_file(tmp_path / "set", kind="messages", embedded=Embedded(tmp_path / "held"))
    assert not problems and [r.id for r in found] == ["0", "1", "2"] and len(found[0].images) == 1


def test_damaged_and_foreign_files(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing")
    (tmp_path / "b.arrow").write_bytes(b"nothing at all")
    (tmp_path / "empty").mkdir()
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "state.json").write_text('{"_data_files": [{"filename": "../a.parquet"}]}')
    for name, text in [("deep", "[" * 100_000), ("list", "[1]")]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text(text)
    for name, what in [("deep", "JSON object"), ("list", "JSON object"),
                       ("a.parquet", "damaged"), ("b.arrow", "damaged"), ("gone.parquet", "cannot be read"),
                       ("empty", "no Parquet files"), ("evil", "outside itself")]:  # fmt: skip
        with pytest.raises(DataError, match=what) as caught:
            list(table_elements(tmp_path / name))
        assert caught.value.fix and str(tmp_path) in caught.value.where
