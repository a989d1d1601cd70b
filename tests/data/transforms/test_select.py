import pytest

from mcit.core.config import parse
from mcit.core.errors import DataError
from mcit.core.types import Row, Turn
from mcit.data.build import build
from mcit.data.folder import DataFolder
from mcit.data.recipe import find_recipe, load_recipe
from mcit.data.transforms.base import RowTransform
from mcit.data.transforms.select import Select


def row(name, answer, **meta):
    return Row(name, (), (Turn("user", "q"), Turn("assistant", answer)), "t", f"t.json:{name}", meta=meta, style="word")


ROWS = [row("1", "red", kind="a"), row("2", "blue", kind="b"), row("3", "red", kind="b")]


def ids(rows):
    return [r.id for r in rows]


def select(**settings):
    return Select(Select.Config(**settings))


def test_keep_and_drop_by_answer_meta_and_style():
    assert ids(select(keep=["red"]).apply(ROWS, seed=0)) == ["1", "3"]
    assert ids(select(drop=["red"]).apply(ROWS, seed=0)) == ["2"]
    assert ids(select(by="meta.kind", keep=["b"]).apply(ROWS, seed=0)) == ["2", "3"]
    assert ids(select(by="style", keep=["word"]).apply(ROWS, seed=0)) == ["1", "2", "3"]


def test_other_splits_need_not_have_every_value():
    assert ids(select(keep=["red", "blue"]).elsewhere(ROWS[:1])) == ["1"]
    assert ids(select(drop=["red"]).elsewhere(ROWS[:1])) == []


def test_a_misspelt_value_and_a_missing_key_are_refused():
    with pytest.raises(DataError, match="no training row has answer 'rad'") as error:
        select(drop=["rad"]).apply(ROWS, seed=0)
    assert "red" in error.value.fix
    with pytest.raises(DataError, match="no meta 'sort'") as error:
        select(by="meta.sort", keep=["b"]).apply(ROWS, seed=0)
    assert error.value.where == "t.json:1:1"


@pytest.mark.parametrize(
    ("settings", "words"),
    [({}, "either"), ({"keep": ["a"], "drop": ["b"]}, "either"), ({"by": "id", "keep": ["a"]}, "meta")],
)
def test_settings(settings, words):
    _, problems = parse(Select.Config, settings)
    assert problems and words in problems[0].what


def test_forget_and_retain_recipes_part_every_split():
    """Red and the others: no row in both, and together all rows of the recipe they come from."""
    found = {
        n: DataFolder.open(build(load_recipe(find_recipe(f"tiny/{n}")))) for n in ("word", "word-forget", "word-retain")
    }
    for splits in (("train", "validation"), ("test",)):
        whole, forget, retain = ([r.id for s in splits for r in folder.rows(s)] for folder in found.values())
        assert sorted(forget + retain) == sorted(whole) and forget and retain and not set(forget) & set(retain)
    assert {r.answer for s in ("train", "test") for r in found["word-forget"].rows(s)} == {"red"}


def test_a_transform_must_not_change_rows_it_may_only_choose(tmp_path, monkeypatch):
    recipe = load_recipe(find_recipe("tiny/word-forget"))
    monkeypatch.setattr(Select, "elsewhere", lambda self, rows: [row("new", "red") for _ in rows])
    monkeypatch.setattr(Select, "apply", lambda self, rows, *, seed: list(rows))
    with pytest.raises(DataError, match="not for training"):
        build(recipe, data_dir=tmp_path)


def test_by_default_all_other_rows_stay():
    assert RowTransform(RowTransform.Config()).elsewhere(ROWS) == ROWS
