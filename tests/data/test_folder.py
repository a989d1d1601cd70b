"""Opening a built folder: what is damaged is named."""

import pytest

from mcit.core.errors import DataError, StateError
from mcit.core.types import Encoding
from mcit.data.build import build
from mcit.data.folder import DataFolder
from mcit.data.recipe import find_recipe, load_recipe
from tests.fakes.recipes import recipe_file, rows


@pytest.fixture
def folder(tmp_path):
    """A generated folder."""
    return build(load_recipe(find_recipe("tiny/word")), data_dir=tmp_path)


def test_what_it_says(folder, tmp_path):
    opened = DataFolder.open(folder)
    assert opened.task == "word" and opened.eval.scorer and opened.eval.style == "word" and not opened.pad_images
    assert list(opened.counts) == ["train", "validation", "test"]
    first = opened.rows("test")[0]
    assert first.root == str(folder / "images" / "1") and first.task == "word"
    assert [len(opened.rows(s)) for s in opened.counts] == list(opened.counts.values())
    with pytest.raises(DataError, match="no split 'dev'"):
        opened.rows("dev")
    padded = build(load_recipe(recipe_file(tmp_path / "s", train=rows(1), image={"pad": True})), data_dir=tmp_path)
    assert DataFolder.open(padded).pad_images
    assert DataFolder.open(padded).rows("train")[0].encoding == Encoding(pad_image=True)


def test_damage_is_named(folder):
    def refused(name):
        with pytest.raises(StateError) as caught:
            DataFolder.open(folder)
        assert name in caught.value.where and caught.value.fix

    rows_file = folder / "train.jsonl"
    text = rows_file.read_text()
    rows_file.write_text(text.replace('"red"', '"rod"', 1))  # same size
    refused("train.jsonl")
    rows_file.write_text(text[:-10])
    refused("train.jsonl")
    rows_file.write_text(text)
    DataFolder.open(folder)
    image = folder / "images" / "0" / "word-00003.png"
    data = image.read_bytes()
    image.write_bytes(data[:-1])
    refused("word-00003.png")
    image.unlink()
    refused("word-00003.png")
    image.write_bytes(data)
    (folder / "manifest.json").unlink()
    refused("manifest.json")
