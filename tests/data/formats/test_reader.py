"""Rows of LLaVA, CoIN and other files: what is read, and every problem in one pass.

T18: ``What is <image> this <image>?`` becomes ``<image>``, a line break, ``What is  this ?`` with both blanks kept.
"""

import base64
import json

import pytest

from mcit.core.types import Encoding
from mcit.data.formats.embedded import Embedded
from tests.data.formats.test_embedded import png
from tests.fakes.rows import llava, read_file, read_values


def write(path, rows, *, lines=False, indent=None):
    """A file of rows as an array or one per line."""
    path.write_text("".join(json.dumps(r) + "\n" for r in rows) if lines else json.dumps(rows, indent=indent))
    return path


def read(path, **settings):
    """Rows and problems as (where, what)."""
    rows, problems = read_file(path, label="f.json", **settings)
    assert all(p.fix for p in problems)
    return rows, [(p.where, p.what) for p in problems]


@pytest.mark.parametrize("lines", [True, False])
def test_rows_of_both_layouts(tmp_path, lines):
    chat = [
        {"from": r, "value": v}
        for r, v in (("human", " <image>\nOne?"), ("gpt", "A "), ("human", "Two?"), ("gpt", "B"))
    ]
    rows = [
        {
            "id": 7,
            "image": "x/1.jpg",
            "conversations": chat,
            "source": "ignored",
            "style": "letter",
            "meta": {"k": [1]},
        },
        llava("text", task="other"),
        llava("two", "<image> and <image>?", image=["1.jpg", "2.jpg"]),
    ]
    found, problems = read(write(tmp_path / "f.json", rows, lines=lines), root="/root", style="word")
    assert problems == []
    first, second, third = found
    assert first.id == "7" and first.images == ("x/1.jpg",) and first.style == "letter" and first.meta == {"k": [1]}
    assert [(t.role, t.text) for t in first.turns] == [
        ("user", "<image>\nOne?"), ("assistant", "A"), ("user", "Two?"), ("assistant", "B")
    ]  # fmt: skip
    assert first.answer == "B" and first.question == "Two?" and first.root == "/root" and first.task == "t"
    assert second.images == () and second.task == "other" and second.style == "word" and second.meta == {}
    assert third.images == ("1.jpg", "2.jpg") and third.turns[0].text == "<image> and <image>?"
    assert [r.source for r in found] == (["f.json:1", "f.json:2", "f.json:3"] if lines else ["f.json:1"] * 3)


def test_coin_test_rows(tmp_path):
    rows = [
        {"question_id": 5, "image": "a.jpg", "text": "Where is it?", "answer": "[0.1, 0.2, 0.3, 0.4]",
         "answer_bbox": "[0.1, 0.2, 0.3, 4e-1]", "size": [640, 480]},
        {"question_id": "q6", "text": "Which?\nA. x", "answer": "A"},
        {"question_id": "q7", "text": "How many?", "answer": 3},
        {"question_id": "q8", "text": "What?", "answer": ["red", "dark red"]},
    ]  # fmt: skip
    found, problems = read(write(tmp_path / "f.json", rows))
    assert problems == []
    box, letter, number, several = found
    assert box.id == "5" and box.turns[0].text == "<image>\nWhere is it?"
    assert box.meta == {"box": [0.1, 0.2, 0.3, 0.4], "size": [640, 480]}
    assert letter.images == () and letter.answer == "A" and number.answer == "3"
    assert several.answer == "red" and several.meta["answers"] == ["red", "dark red"]


BAD = {
    "none": ({"id": "none"}, "no conversations"),
    "empty": ({"id": "empty", "conversations": []}, "no conversations"),
    "list": ({"id": "list", "conversations": "hi"}, "no conversations"),
    "system": ({"id": "system", "conversations": [{"from": "system", "value": "x"}]}, "the last turn is not an answer"),
    "norole": ({"id": "norole", "conversations": [{"value": "x"}]}, "turn 1 is from None"),
    "gptfirst": (
        {"id": "gptfirst", "conversations": [{"from": "gpt", "value": "x"}]},
        "turn 1 is from 'gpt', expected",
    ),
    "twice": (
        {"id": "twice", "conversations": [{"from": "human", "value": "x"}, {"from": "human", "value": "y"}]},
        "turn 2 is from 'human', expected 'gpt'",
    ),
    "open": ({"id": "open", "conversations": [{"from": "human", "value": "x"}]}, "last turn is not an answer"),
    "blank": (llava("blank", answer=" \n"), "turn 2 is an empty answer"),
    "null": (llava("null", answer=None), "turn 2 is an empty answer"),
    "noquestion": (llava("noquestion", question=""), "turn 1 is an empty question"),
    "noimage": (llava("noimage", "<image>\nx"), "1 <image> placeholder(s) for 0 image(s)"),
    "noplace": (llava("noplace", image="a.png"), "0 <image> placeholder(s) for 1 image(s)"),
    "three": (llava("three", "<image><image><image>", image=["a", "b"]), "3 <image> placeholder(s) for 2 image(s)"),
    "inanswer": (llava("inanswer", answer="<image>", image="a.png"), "an answer contains <image>"),
    "imagetype": (llava("imagetype", "<image>", image=3), "'image' must be a path"),
    "imageblank": (llava("imageblank", "<image>", image=[""]), "'image' must be a path"),
    "meta": (llava("meta", meta=[1]), "'meta' must be an object"),
    "style": (llava("style", style=1), "'style' must be a text"),
    "bbox": ({"id": "bbox", "text": "q", "answer": "a", "answer_bbox": "[1, 2]"}, "'answer_bbox' must be 4 numbers"),
    "noanswer": ({"id": "noanswer", "text": "q", "answer": ""}, "'answer' is empty"),
}


@pytest.mark.parametrize("lines", [True, False])
def test_every_bad_row_is_reported_in_one_pass(tmp_path, lines):
    rows = [llava("good-1"), *(value for value, _ in BAD.values()), llava("good-2")]
    found, problems = read(write(tmp_path / "f.json", rows, lines=lines))
    assert [r.id for r in found] == ["good-1", "good-2"]
    assert len(problems) == len(BAD)
    for number, ((identity, (_, what)), problem) in enumerate(zip(BAD.items(), problems, strict=True), start=2):
        assert problem[0] == f"f.json:{number if lines else 1}:{identity}"
        assert what in problem[1]


def test_files_with_other_key_names():
    """TRACE's files hold ``prompt`` and ``answer``; a row without one of them is named, the others are kept."""
    values = [{"prompt": "1 + 1?", "answer": 2}, {"prompt": "1 + 2?"}, {"prompt": "x", "answer": "y", "id": "z"}]
    rows, (problem,) = read_values(values, fields=("prompt", "answer"))
    assert [(row.question, row.answer) for row in rows] == [("1 + 1?", "2"), ("x", "y")] and rows[1].id == "z"
    assert problem.what == "key 'answer' is missing or no text" and problem.where == "x:2:row-2"


def test_a_text_alone_is_a_plain_text():
    """Kept as it is, blanks and all; a conversation cannot call itself plain."""
    values = [{"id": 1, "text": " Once upon a time\n"}, {"text": " "}, {**llava("x"), "meta": {"raw": True}}]
    (first,), problems = read_values(values)
    assert [(turn.role, turn.text) for turn in first.turns] == [("assistant", " Once upon a time\n")]
    assert first.encoding == Encoding(raw=True) and first.meta == {} and first.question == ""
    assert [(p.what, p.where) for p in problems] == [
        ("'text' is empty", "x:2:row-2"),
        ("'raw' is for rows of text alone", "x:3:x"),
    ]


def test_placeholders_to_the_front():
    rows, problems = read_values([llava("a", "What is <image> this <image>?", image="a.png")], placeholders="front")
    assert not problems and rows[0].turns[0].text == "<image>\nWhat is  this ?"
    assert (
        read_values([llava("a", "<image> <image>", image="a.png")])[1][0].what
        == "2 <image> placeholder(s) for 1 image(s)"
    )


def test_a_row_without_id_gets_its_number():
    nameless = {k: v for k, v in llava("x").items() if k != "id"}
    rows, problems = read_values([llava("a"), nameless, {**nameless, "id": None}, {**nameless, "id": True}])
    assert [r.id for r in rows] == ["a", "row-2", "row-3"] and [p.what for p in problems] == ["id is a bool"]


def test_nothing_at_all():
    assert [p.what for p in read_values([])[1]] == ["holds no rows"]


def test_pictures_inside_rows(tmp_path):
    """``data:`` addresses and bytes go into the folder of the source; a path beside them is refused."""
    address = "data:image/png;base64," + base64.b64encode(png()).decode()
    content = [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": "What?"}]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "red"}]
    held = Embedded(tmp_path / "held")
    rows, problems = read_values([{"id": 1, "messages": turns}], kind="messages", root="/r", embedded=held)
    assert not problems and rows[0].root == str(held.folder) and (held.folder / rows[0].images[0]).read_bytes() == png()
    (problem,) = read_values([{"id": 1, "messages": turns}], kind="messages")[1]
    assert problem.what == "the row holds its picture itself"
    mixed = llava("m", "<image><image>", image=[{"bytes": png(), "path": None}, "a.png"])
    assert "another by path" in read_values([mixed], embedded=held)[1][0].what
    by_path = llava("p", "<image>", images=[{"bytes": None, "path": "a.png"}])
    assert read_values([by_path], root="/r", embedded=held)[0][0].images == ("a.png",)


HABITS = [
    (llava("url", "<image>", image="https://x.org/a.png"), "is an address, no path", "fetch it to a file"),
    (llava("file", "<image>", image="file:///a.png"), "is an address, no path", "fetch it to a file"),
    (llava("windows", "<image>", image="GQA\\a.png"), "has backslashes", "write / between folders"),
    (
        {"id": "under", "image_path": "a.png", "text": "q", "answer": "a"},
        "the row has its picture under 'image_path'",
        "name the key 'image'",
    ),
    (llava("video", "<video>", video="a.mp4"), "the row has a 'video'", "only pictures and text"),
    (llava("nopath", "<image>", image={"bytes": None}), "neither a path nor bytes", "name the picture"),
    ({"question_id": 1, "text": "q", "answer": float("nan")}, "a turn is nan", "write the text"),
    ({"question_id": 1, "text": "q", "answer": True}, "a turn is true", '"yes"'),
    ({"id": "reversed", "text": "q", "answer": "a", "answer_bbox": [0.5, 0.1, 0.2, 0.9]}, "the box [0.5", "smaller corner"),
    ({"id": "pixels", "text": "q", "answer": "a", "answer_bbox": [10, 20, 30, 40]}, "the box [10.0", "padded picture"),
    ({"id": "nan", "text": "q", "answer": "a", "answer_bbox": [0.1, 0.2, float("nan"), 1]}, "must be 4 numbers", "correct"),
    ({"image_id": 3, "category_id": 1, "bbox": [1, 2, 3, 4]}, "its keys are 'image_id', 'category_id', 'bbox'", "add a human"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "what", "fix"), HABITS)
def test_habits_get_a_message_that_helps(value, what, fix):
    rows, (problem,) = read_values([value])
    assert not rows and what in problem.what and fix in problem.fix


def test_several_answers():
    """VQA's annotations: a list of texts, or of objects; the first is the one shown."""
    given = [{"answer": "two", "answer_confidence": "yes"}, {"answer": "2"}]
    rows, problems = read_values([{"question_id": 1, "text": "How many?", "answers": given}])
    assert not problems and rows[0].answer == "two" and rows[0].meta["answers"] == ["two", "2"]


def test_pictures_under_both_keys_are_never_half_taken():
    """Before, ``image`` won and ``images`` was dropped without a word, also by an empty list."""
    question = "<image>\nWhat?"
    rows, problems = read_values(
        [
            llava("same", question, image="a.png", images=["a.png"]),
            llava("empty", question, image=[], images=["a.png"]),
            llava("two", question, image="a.png", images=["b.png"]),
        ]
    )
    assert [row.images for row in rows] == [("a.png",), ("a.png",)]
    assert [(p.where, p.what) for p in problems] == [("x:3:two", "'image' and 'images' name different pictures")]
