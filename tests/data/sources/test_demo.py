"""The demo's tasks: repeatable, balanced, true, and split as they say. easy-vqa comes from a small made-up wheel."""

import hashlib
import io
import json
import re
import zipfile
from collections import Counter

import pytest
from PIL import Image

from mcit.core.errors import DataError
from mcit.data.build import check
from mcit.data.recipe import find_generator, find_recipe, load_recipe
from mcit.data.sources import demo
from mcit.data.sources.emoji import PIXELS, emoji
from tests.fakes.rows import read_values

RGB = {colour: (0, 20 * number, 200) for number, colour in enumerate(demo.COLOURS)}


def _wheel(path):
    """Twenty-four pictures a split, of one colour and shape each, and questions of the published kinds about them."""
    with zipfile.ZipFile(path, "w") as archive:
        for split, offset in (("train", 0), ("test", 100)):
            questions = []
            for number in range(24):
                colour, shape = list(RGB)[number % 8], demo.SHAPES[number % 3]
                buffer = io.BytesIO()
                picture = Image.new("RGB", (64, 64), RGB[colour])
                picture.putpixel((0, 0), (offset + number, 0, 0))
                picture.save(buffer, "PNG")
                archive.writestr(f"easy_vqa/data/{split}/images/{number}.png", buffer.getvalue())
                questions += [["what shape is present?", shape, number]]
                questions += [[f"what color is the {shape}?", colour, number]]
                for c in RGB:
                    questions.append([f"is there a {c} shape?", "yes" if c == colour else "no", number])
                    questions.append([f"is there not a {c} shape?", "no" if c == colour else "yes", number])
                for s in demo.SHAPES:
                    questions.append([f"does the image contain a {s}?", "yes" if s == shape else "no", number])
                    questions.append([f"is no {s} present?", "no" if s == shape else "yes", number])
            archive.writestr(f"easy_vqa/data/{split}/questions.json", json.dumps(questions))


@pytest.fixture(autouse=True)
def wheel(tmp_path, monkeypatch):
    path = tmp_path / "easy.whl"
    _wheel(path)
    monkeypatch.setattr(demo, "fetch_package", lambda pin, *, announce=None: path)


def _rows(name, split, rows, folder, seed=3):
    folder.mkdir(exist_ok=True, parents=True)
    return list(demo.GENERATORS[name](split, rows, seed, folder))


def _hashes(rows, folder):
    return {hashlib.sha256((folder / row["image"]).read_bytes()).hexdigest() for row in rows}


def _answers(rows):
    return Counter(row["conversations"][1]["value"] for row in rows)


COUNTS = {"kind": 104, "edible": 78, "naming": 60, "naming-kinds": 60, "lowvision": 48}
COUNTS |= {"easyvqa": 24, "easyvqa-word": 16, "easyvqa-ten": 40}


@pytest.mark.parametrize("name", sorted(demo.GENERATORS))
def test_rows_are_sound_and_repeatable(name, tmp_path):
    rows = COUNTS[name]
    a, b = (_rows(name, "train", rows, tmp_path / folder) for folder in "ab")
    assert a == b and _hashes(a, tmp_path / "a") == _hashes(b, tmp_path / "b")
    read, problems = read_values(a)
    assert not problems and len(read) == rows
    for row in read:
        image = Image.open(tmp_path / "a" / row.images[0])
        assert image.size == (PIXELS, PIXELS) and image.mode == "RGB"
        assert row.meta["class"] and len(row.question.split()) <= 20
    assert find_generator(name) is demo.GENERATORS[name]
    other = _rows(name, "train", rows, tmp_path / "c", seed=4)
    assert other != a or _hashes(other, tmp_path / "c") != _hashes(a, tmp_path / "a")


@pytest.mark.parametrize("name", sorted(demo.GENERATORS))
def test_no_test_picture_is_seen_in_training(name, tmp_path):
    train, test = (_rows(name, split, COUNTS[name] // 2, tmp_path / split) for split in ("train", "test"))
    assert not _hashes(train, tmp_path / "train") & _hashes(test, tmp_path / "test")


def test_kind_is_balanced_true_and_split_by_object(tmp_path):
    groups = {item.name: item.group for item in emoji()}
    seen = {}
    for split in ("train", "test"):
        rows = _rows("kind", split, 104, tmp_path / split)
        assert _answers(rows) == dict.fromkeys("ABCD", 26)
        seen[split] = {row["meta"]["object"] for row in rows}
        for row in rows:
            letter = row["conversations"][1]["value"]
            assert row["meta"]["choices"]["ABCD".index(letter)] == row["meta"]["class"] == groups[row["meta"]["object"]]
            assert f"{letter}. {row['meta']['class']}" in row["conversations"][0]["value"]
    assert seen["train"] == {item.name for item in emoji("kind-train")}
    assert seen["test"] == {item.name for item in emoji("kind-test")}


def test_naming_kinds_asks_another_question_about_the_same_pictures(tmp_path):
    names, kinds = (_rows(name, "train", 60, tmp_path / name) for name in ("naming", "naming-kinds"))
    assert _hashes(names, tmp_path / "naming") == _hashes(kinds, tmp_path / "naming-kinds")
    pairs = [[row["conversations"][1]["value"] for row in pair] for pair in zip(names, kinds, strict=True)]
    told = dict(pairs)
    assert (told["penguin"], told["pizza"], told["rocket"], told["key"]) == ("animal", "food", "travel", "object")
    assert not {row["id"] for row in names} & {row["id"] for row in kinds}


def test_edible_is_balanced_true_and_split_by_object(tmp_path):
    groups = {item.name: item.group for item in emoji()}
    for split, role in (("train", "kind-train"), ("test", "kind-test")):
        rows = _rows("edible", split, 78, tmp_path / split)
        assert _answers(rows) == {"yes": 39, "no": 39}
        allowed = {item.name for item in emoji(role)}
        for row in rows:
            assert row["meta"]["object"] in allowed
            assert (groups[row["meta"]["object"]] == "food") is (row["conversations"][1]["value"] == "yes")


def test_naming_asks_for_all_thirty_equally_often(tmp_path):
    rows = _rows("naming", "test", 60, tmp_path / "n")
    assert _answers(rows) == {item.name: 2 for item in emoji("naming")}
    assert all(row["meta"]["answers"] == [row["conversations"][1]["value"]] for row in rows)


def test_lowvision_hides_every_second_object_and_only_those(tmp_path):
    """A hidden picture keeps no edge: after blurring or darkening, neighbours differ by at most 12 of 255."""
    rows = _rows("lowvision", "train", 48, tmp_path / "l")
    assert _answers(rows)[demo.UNANSWERABLE] == 24
    assert set(_answers(rows)) - {demo.UNANSWERABLE} <= {item.name for item in emoji("lowvision")}
    for row in rows:
        hidden = row["conversations"][1]["value"] == demo.UNANSWERABLE
        assert row["meta"]["visible"] is not hidden
        image = Image.open(tmp_path / "l" / row["image"]).convert("L")
        values = [list(image.crop((0, y, PIXELS, y + 1)).getdata()) for y in range(PIXELS)]
        steepest = max(abs(a - b) for line in values for a, b in zip(line, line[1:], strict=False))
        assert (steepest <= 12) is hidden, (row["id"], steepest)


def test_lowvision_and_naming_share_no_object():
    assert not {item.name for item in emoji("lowvision")} & {item.name for item in emoji("naming")}


@pytest.mark.parametrize("split", ["train", "test"])
def test_easyvqa_is_balanced_within_shapes_and_colours_and_never_negated(split, tmp_path):
    rows = _rows("easyvqa", split, 24, tmp_path / "e")
    counts = Counter((row["meta"]["about"], row["conversations"][1]["value"]) for row in rows)
    assert counts == {(a, b): 6 for a in ("shape", "color") for b in ("yes", "no")}
    assert len({(row["conversations"][0]["value"], row["image"]) for row in rows}) == 24
    for row in rows:
        number = int(re.findall(r"\d+", row["image"])[0])
        question = row["conversations"][0]["value"]
        assert " not " not in question and " no " not in question.removesuffix(demo.YES_NO_CUE)
        true = {list(RGB)[number % 8], demo.SHAPES[number % 3]}
        named = set(re.findall(r"[a-z]+", question)) & {*RGB, *demo.SHAPES}
        assert (row["conversations"][1]["value"] == "yes") == bool(named & true), question


def test_easyvqa_pictures_are_the_published_ones_of_the_split(tmp_path):
    rows = _rows("easyvqa", "test", 24, tmp_path / "e")
    for row in rows:
        number = int(re.findall(r"\d+", row["image"])[0])
        middle = Image.open(tmp_path / "e" / row["image"]).getpixel((PIXELS // 2, PIXELS // 2))
        assert middle == RGB[list(RGB)[number % 8]]


def test_easyvqa_word_answers_what_is_asked(tmp_path):
    rows = _rows("easyvqa-word", "train", 3, tmp_path / "w")
    for row in rows:
        answer, about = row["conversations"][1]["value"], row["meta"]["about"]
        assert (answer in demo.SHAPES) == (about == "shape")
        assert row["conversations"][0]["value"].endswith(demo.WORD_CUE)


def test_asking_for_more_rows_than_there_are_is_said(tmp_path):
    with pytest.raises(DataError, match=r"easyvqa\[train\]"):
        _rows("easyvqa", "train", 97, tmp_path / "e")


@pytest.mark.parametrize("name", ["kind", "naming", "lowvision"])
def test_recipes_build_without_a_bad_row(name):
    recipe = load_recipe(find_recipe(f"demo/{name}"))
    report = check(recipe)
    assert not report.bad and not report.fatal


def test_ten_questions_of_each_picture(tmp_path):
    """Published ones, none twice; pictures with fewer are left out."""
    rows = _rows("easyvqa-ten", "train", 60, tmp_path)
    asked = Counter(row["image"] for row in rows)
    assert list(asked.values()) == [10] * 6
    assert len({(row["image"], row["conversations"][0]["value"]) for row in rows}) == 60
    assert {row["style"] for row in rows} == {"yes_no", "word"} and rows == _rows("easyvqa-ten", "train", 60, tmp_path)
    with pytest.raises(DataError, match="no more than 240"):
        _rows("easyvqa-ten", "train", 250, tmp_path)
