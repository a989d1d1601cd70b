"""Answers of several people, joined by question id."""

import json

import pytest

from mcit.core.errors import DataError
from mcit.data.build import build
from mcit.data.folder import DataFolder
from mcit.data.recipe import load_recipe, recipe_digest
from mcit.data.references import with_references
from tests.fakes.rows import read_values

TEN = [f"a{k}" for k in range(10)]


def loaded(*ids):
    return read_values([{"question_id": i, "text": "What?", "answer": "a0"} for i in ids], label="test.json")[0]


def written(folder, value):
    path = folder / "val.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


@pytest.mark.parametrize("wrap", [lambda entries: {"data": entries}, list])
def test_rows_get_the_answers_of_their_question(tmp_path, wrap):
    """Question ids are numbers in one file and texts in the other."""
    entries = [{"question_id": 2, "answers": TEN, "image_id": "x"}, {"question_id": "1", "answers": TEN[::-1]}]
    found = list(with_references(loaded("1", 2), written(tmp_path, wrap(entries)), label="val.json"))
    assert [row.meta["answers"] for row in found] == [TEN[::-1], TEN]


def test_a_row_without_an_entry_is_named(tmp_path):
    path = written(tmp_path, {"data": [{"question_id": 1, "answers": TEN}]})
    found = list(with_references(loaded(1, 7), path, label="val.json"))
    assert found[0].id == "1" and found[1].where == "test.json:2:7" and "question 7" in found[1].what


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ({"answers": []}, "no list of answers"),
        ({"data": [{"question_id": 1}]}, "entry 1"),
        ({"data": [{"question_id": 1, "answers": "red"}]}, "entry 1"),
        ({"data": [{"question_id": 1, "answers": []}]}, "entry 1"),
        ({"data": [{"question_id": 1, "answers": TEN}, {"question_id": "1", "answers": ["b"]}]}, "twice"),
    ],
)
def test_another_form_is_refused(tmp_path, value, says):
    with pytest.raises(DataError, match=says):
        list(with_references(loaded(1), written(tmp_path, value), label="val.json"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        list(with_references(loaded(1), tmp_path / "absent.json", label="absent.json"))


def test_a_recipe_reads_them_and_depends_on_them(tmp_path):
    (tmp_path / "test.json").write_text(json.dumps([{"question_id": 1, "text": "What?", "answer": "a0"}]))
    path = written(tmp_path, {"data": [{"question_id": 1, "answers": TEN}]})
    (tmp_path / "r.yaml").write_text(
        "name: r\ntask: t\nsources: [{kind: llava, path: test.json, split: test, answers: val.json}]\neval: {scorer: vqa}\n"
    )
    recipe = load_recipe(tmp_path / "r.yaml")
    (row,) = DataFolder.open(build(recipe, data_dir=tmp_path / "out")).rows("test")
    assert row.meta["answers"] == TEN
    before = recipe_digest(recipe)
    path.write_text(json.dumps({"data": [{"question_id": 1, "answers": TEN[:9] + ["b"]}]}))
    assert recipe_digest(recipe) != before
