"""Guesses about files, each named with what it rests on."""

import json
import time
from hashlib import sha256

import pytest

from mcit.core.errors import DataError
from mcit.data.guess import _style, sources_below
from tests.fakes.rows import llava, picture


def save(path, values, *, lines=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, values)) if lines else json.dumps(values))


def guessed(folder):
    tasks, left_out = sources_below(folder)
    return {task: {s.path.name: s for s in sources} for task, sources in tasks.items()}, left_out


def test_layouts(tmp_path):
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "yes"}]
    save(tmp_path / "a" / "train.json", [llava("1"), llava("2")])
    save(tmp_path / "b" / "train.jsonl", [{"messages": chat}], lines=True)
    save(
        tmp_path / "c" / "train.json",
        [{"conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]}],
    )
    save(tmp_path / "d" / "train.json", [{"question": "q", "answer": 3}])
    save(tmp_path / "e" / "some.json", [{"question_id": 1, "text": "q", "answer": "A"}])
    found, left_out = guessed(tmp_path)
    kinds = {task: next(iter(sources.values())) for task, sources in found.items()}
    assert {t: s.kind for t, s in kinds.items()} == {
        "a": "llava", "b": "messages", "c": "sharegpt", "d": "llava", "e": "llava"
    }  # fmt: skip
    assert kinds["d"].fields == ("question", "answer") and kinds["e"].split == "test" and kinds["e"].style == "letter"
    assert kinds["b"].style == "yes_no" and not left_out and all(s.notes for s in kinds.values())


def test_keys_that_are_not_read_are_named(tmp_path):
    save(tmp_path / "a" / "train.json", [{"instruction": "Translate", "input": "dog", "output": "chien", "image": ""}])
    save(tmp_path / "b" / "train.json", [llava("1", system="be brief", tools="[]"), llava("2")])
    save(tmp_path / "c" / "train.json", [dict.fromkeys("abcdefg", 1) | {"text": "q", "answer": "a"}])
    found, _ = guessed(tmp_path)
    notes = {task: next(note for note in s["train.json"].notes if "not read" in note) for task, s in found.items()}
    assert notes == {
        "a": "not read: 'input'",
        "b": "not read: 'tools'",
        "c": "not read: 'a', 'b', 'c', 'd', 'e', 'f' and others",
    }


@pytest.mark.parametrize(
    ("name", "split", "task"),
    [
        ("colours_train.json", "train", "colours"),
        ("colours-test.jsonl", "test", "colours"),
        ("val.json", "validation", "data"),
        ("gqa/testdev.json", "test", "gqa"),
        ("gqa/train_x20.json", "train", "gqa"),
        ("shapes.json", "train", "shapes"),
        ("Café_Straße.json", "train", "cafe-strasse"),
        ("鳥_test.json", "test", "8754cc"),
        ("鳥/train.json", "train", "8754cc"),
        ("犬cat.json", "train", "cat" + sha256("犬cat".encode()).hexdigest()[:6]),
    ],
)
def test_splits_and_tasks_from_names(tmp_path, name, split, task):
    save(tmp_path / "data" / name, [llava("1")])
    ((found, sources),) = guessed(tmp_path / "data")[0].items()
    (source,) = sources.values()
    assert (source.split, found) == (split, task)


ANSWERS = {
    "yes_no": ["yes", "No", "yes."],
    "letter": ["A", "B.", "C"],
    "box": ["[0.1, 0.2, 0.3, 0.4]", "[.1,.2,.3,1]"],
    "word": ["red", "blue", "3"],
    "phrase": ["a red cup", "two"],
    "text": ["It is a long answer with many words.", "red"],
}


@pytest.mark.parametrize("style", ANSWERS)
def test_styles_from_answers(tmp_path, style):
    save(tmp_path / "t.json", [llava(str(k), answer=a) for k, a in enumerate(ANSWERS[style])])
    assert guessed(tmp_path)[0]["t"]["t.json"].style == style


def test_pictures_are_looked_for_around_the_file(tmp_path):
    (tmp_path / "pictures" / "gqa").mkdir(parents=True)
    picture(tmp_path / "pictures" / "gqa", "1.png")
    rows = [
        llava("1", "<image>q", image="gqa/1.png"),
        llava("2", "<image>q", image="gqa/2.png"),
        llava("3", image="gqa/1.png"),
    ]
    save(tmp_path / "text" / "train.json", rows)
    source = guessed(tmp_path)[0]["text"]["train.json"]
    assert source.images == tmp_path / "pictures" and "1 of 2 looked for are there" in source.notes[-1]
    assert source.rows == 2 and "placeholder" in source.problems[0].what
    save(tmp_path / "text" / "train.json", [llava("1", "<image>q", image="nowhere.png")])
    source = guessed(tmp_path)[0]["text"]["train.json"]
    assert source.images is None and "pictures not found, such as nowhere.png" in source.notes[-1]


def test_what_is_left_out_is_named(tmp_path):
    save(tmp_path / "rows.json", [llava("1")])
    save(tmp_path / "coco.json", {"images": [], "annotations": []})
    save(tmp_path / "boxes.json", [{"image_id": 3, "bbox": [1, 2, 3, 4]}])
    (tmp_path / "empty.json").write_text("[]")
    (tmp_path / ".hidden.json").write_text("[]")
    _, left_out = guessed(tmp_path)
    assert len(left_out) == 3 and all("left out" in line for line in left_out)
    assert any("keys: image_id, bbox" in line for line in left_out)
    assert any(line.startswith("empty.json") and "holds no rows" in line for line in left_out)


def test_nothing_to_guess(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        sources_below(tmp_path / "gone")
    (tmp_path / "bad.json").write_text("hello")
    with pytest.raises(DataError, match="no file with rows was found .*bad.json") as caught:
        sources_below(tmp_path)
    assert caught.value.fix


def test_a_long_run_of_digits_costs_no_time():
    begin = time.process_time()
    assert _style(["0" * 60_000])[0] == "word" and _style(["1, .5, 0.25, 00"])[0] == "box"
    assert time.process_time() - begin < 3


def test_files_that_are_not_read_are_named(tmp_path):
    save(tmp_path / "a.json", [llava("1")])
    for name in ("b.csv", "c.XLSX", "d.jsonl.gz", "pictures.zip"):
        (tmp_path / name).write_text("x")
    save(tmp_path / "e.ndjson", [llava("1")], lines=True)
    tasks, left_out = guessed(tmp_path)
    assert set(tasks) == {"a", "e"} and [line.split(":")[0] for line in left_out] == [
        "b.csv",
        "c.XLSX",
        "d.jsonl.gz",
        "pictures.zip",
    ]
    assert "write its rows as JSON lines or Parquet" in left_out[0] and "unpack it" in left_out[2]
