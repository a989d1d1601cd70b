"""LLaVA files out, and files of that schema in, by others or by us."""

import json

import pytest

from mcit.core.errors import DataError
from mcit.core.types import Encoding
from mcit.data.asd.cues import CUES
from mcit.data.asd.writing.export import export_llava, llava_row
from mcit.data.build import build
from mcit.data.folder import DataFolder
from mcit.data.recipe import load_recipe
from tests.fakes.recipes import recipe_file
from tests.fakes.rows import llava, picture, read_file, row


def choices(count):
    """Text-only and picture rows with letters."""
    out = []
    for k in range(count):
        asked = f"Which is {k}?\nA. left{k}\nB. right{k}\n{CUES['mcq']}"
        extra = {"image": "a.png"} if k % 2 else {}
        out.append(llava(f"r{k}", ("<image>\n" if k % 2 else "") + asked, "AB"[k % 2], style="letter", **extra))
    return out


def test_round_trip(tmp_path):
    """100 rows at X=20: 5 yn and 5 short by rule; what is written reads back as the rows of the folder."""
    recipe = load_recipe(recipe_file(tmp_path / "s", train=choices(100), transforms=[{"use": "asd"}]))
    rows = DataFolder.open(build(recipe, data_dir=tmp_path / "d")).rows("train")
    out = tmp_path / "train_x20.json"
    assert export_llava(recipe, rows, out) == str((tmp_path / "s" / "images").resolve())
    values = json.loads(out.read_text())
    assert isinstance(values, list) and len(values) == 100
    assert {frozenset(v) - {"style", "asd", "meta"} for v in values} == {
        frozenset({"id", "conversations"}),
        frozenset({"id", "image", "conversations"}),
    }
    traced = [v for v in values if "asd" in v]
    assert len(traced) == 10 and set(traced[0]["asd"]) == {"style", "native_style", "src_id", "seed", "generator"}
    back, problems = read_file(out, task="task", root=rows[0].root)
    assert not problems
    assert [(r.id, r.images, r.turns, r.style, r.meta) for r in back] == [
        (r.id, r.images, r.turns, r.style, r.meta) for r in rows
    ]


def test_files_of_the_authors_schema_load_as_they_are(tmp_path):
    """Placeholder and line break first, text-only rows without `image`, unknown keys, no style anywhere."""
    (tmp_path / "s" / "images").mkdir(parents=True)
    picture(tmp_path / "s" / "images", "x.png")
    talk = [{"from": "human", "value": f"Is it a metal?\n{CUES['yn']}"}, {"from": "gpt", "value": "Yes"}]
    train = [
        {
            "id": "11",
            "image": "x.png",
            "conversations": [{**talk[0], "value": "<image>\nA or B?"}, {**talk[1], "value": "A"}],
        },
        {"id": "12", "conversations": talk, "asd": {"style": "yn", "native_style": "mcq"}},
        {
            "id": 13,
            "conversations": [*talk, {"from": "human", "value": "Why?"}, {"from": "gpt", "value": "It shines."}],
        },
        {"id": "14", "conversations": talk, "unknown": [1]},
    ]
    path = recipe_file(tmp_path / "s", train=train, transforms=[], eval={"scorer": "choice", "style": "letter"})
    (tmp_path / "s" / "train.json").rename(tmp_path / "s" / "train_x20.json")
    path.write_text(path.read_text().replace("train.json", "train_x20.json"))
    folder = DataFolder.open(build(load_recipe(path), data_dir=tmp_path / "d"))
    rows = folder.rows("train")
    assert [r.id for r in rows] == ["11", "12", "13", "14"] and [len(r.images) for r in rows] == [1, 0, 0, 0]
    assert rows[1].meta["asd"]["native_style"] == "mcq" and rows[2].turns[3].text == "It shines."


def test_diversified_files_are_not_diversified_again(tmp_path):
    train = [{**llava(f"r{k}", "What?", f"c{k}"), "style": "word", "asd": {"style": "short"}} for k in range(9)]
    with pytest.raises(DataError, match="diversified already"):
        build(load_recipe(recipe_file(tmp_path / "s", train=train, transforms=[{"use": "asd"}])), data_dir=tmp_path)


def test_several_pictures_stay_a_list():
    assert llava_row(row("<image><image>\nq", "a", images=("a", "b")))["image"] == ["a", "b"]
    assert "meta" not in llava_row(row("q", "a", encoding=Encoding(pad_image=True)))


def test_what_is_refused(tmp_path):
    path = recipe_file(tmp_path / "s", train=choices(4), test=choices(1))
    recipe = load_recipe(path)
    for name in ("test.json", "train.json"):
        before = (tmp_path / "s" / name).read_bytes()
        with pytest.raises(DataError, match="is a source file"):
            export_llava(recipe, [], tmp_path / "s" / "." / name)
        assert (tmp_path / "s" / name).read_bytes() == before
    two = [row("<image>\nq", "a", images=("a",), root=root) for root in ("/x", "/y")]
    with pytest.raises(DataError, match="2 folders"):
        export_llava(recipe, two, tmp_path / "o.json")
    assert export_llava(recipe, [row("q", "a")], tmp_path / "o.json") == ""
