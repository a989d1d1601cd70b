"""LLaVA and CoIN files: rows, line numbers, and every problem in one pass.

T18: ``What is <image> this <image>?`` becomes ``<image>``, a line break, ``What is  this ?`` with both blanks kept.
"""

import json

import pytest

from mcit.core.errors import DataError
from mcit.data.llava import front_placeholder, read_llava, row_from_json, row_to_json
from tests.fakes.rows import llava


def write(path, rows, *, lines=False, indent=None):
    """A file of rows as an array or one per line."""
    path.write_text("".join(json.dumps(r) + "\n" for r in rows) if lines else json.dumps(rows, indent=indent))
    return path


def read(path, **settings):
    """Rows and problems as (where, what)."""
    found = read_llava(path, task="t", label="f.json", **settings)
    return found.rows, [(p.where, p.what) for p in found.problems]


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
    found, problems = read(write(tmp_path / "f.json", rows, lines=lines), image_root="/root", style="word")
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


def test_line_numbers_inside_an_array(tmp_path):
    """One key a line: rows of json.dumps(indent=1) begin where their brace stands."""
    path = write(tmp_path / "f.json", [llava("a"), llava("b"), {"id": "c"}, llava("d")], indent=1)
    starts = [n for n, line in enumerate(path.read_text().split("\n"), start=1) if line == " {"]
    found, problems = read(path)
    assert [r.source for r in found] == [f"f.json:{starts[k]}" for k in (0, 1, 3)]
    assert problems == [(f"f.json:{starts[2]}:c", "the row has no conversations")]


BAD = {
    "none": ({"id": "none"}, "no conversations"),
    "empty": ({"id": "empty", "conversations": []}, "no conversations"),
    "list": ({"id": "list", "conversations": "hi"}, "no conversations"),
    "system": ({"id": "system", "conversations": [{"from": "system", "value": "x"}]}, "turn 1 is from 'system'"),
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
    "surrogate": (llava("surrogate", answer="\ud800"), "cannot be stored"),
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
    assert all(p.fix for p in read_llava(tmp_path / "f.json", task="t").problems)


def test_duplicate_ids_name_the_first(tmp_path):
    found, problems = read(write(tmp_path / "f.jsonl", [llava("a"), llava("b"), llava("a")], lines=True))
    assert [r.id for r in found] == ["a", "b"]
    assert problems == [("f.json:3:a", "id 'a' is already used at line 1")]


def test_a_row_without_id_gets_its_number(tmp_path):
    nameless = {k: v for k, v in llava("x").items() if k != "id"}
    found, problems = read(write(tmp_path / "f.json", [llava("a"), nameless, nameless]))
    assert [r.id for r in found] == ["a", "row-2", "row-3"] and not problems


def test_malformed_lines_do_not_stop_the_reading(tmp_path):
    path = tmp_path / "f.jsonl"
    good = json.dumps(llava("a"))
    path.write_text(f'{good}\n{{"id": "b", \n\n[1, 2]\n{json.dumps(llava("c"))}\n{{"id": NaN}}\n"x"\n' + "[" * 100_000)
    found, problems = read(path)
    assert [r.id for r in found] == ["a", "c"]
    assert [where for where, _ in problems] == ["f.json:2", "f.json:4:row-3", "f.json:6", "f.json:7:row-6", "f.json:8"]
    assert "malformed JSON" in problems[0][1] and "expected an object, found list" in problems[1][1]
    assert "NaN" in problems[2][1] and "malformed JSON" in problems[4][1]


def test_malformed_element_of_an_array(tmp_path):
    path = tmp_path / "f.json"
    a, b, c = (json.dumps(llava(i)) for i in "abc")
    path.write_text(f"[\n{a},\n{b[:-20]}\n,\n{c}\n]")
    found, problems = read(path)
    assert [r.id for r in found] == ["a", "c"] and [r.source for r in found] == ["f.json:2", "f.json:5"]
    assert len(problems) == 1 and problems[0][0] in ("f.json:3", "f.json:4") and "malformed JSON" in problems[0][1]
    path.write_text(f"[{a} {b}, {c}]")  # a comma is missing
    found, problems = read(path)
    assert "c" in [r.id for r in found] and len(problems) == 1 and "delimiter" in problems[0][1]


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("", "f.json", "holds no rows"),
        ("[]", "f.json", "holds no rows"),
        ("[\n\n", "f.json:3", "not closed"),
        ('[\n{"id": "a"', "f.json:2", "malformed JSON"),
        ("[] x", "f.json:1", "after the end"),
        ('{\n "id": "a",\n "conversations": []\n}', "f.json:1", "one object; expected an array"),
        ("hello", "f.json:1", "malformed JSON"),
    ],
)
def test_files_that_are_no_rows(tmp_path, text, where, what):
    (tmp_path / "f.json").write_text(text)
    found, problems = read(tmp_path / "f.json")
    assert found == [] and problems[0][0] == where and what in problems[0][1]


def test_unreadable_files(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_llava(tmp_path / "gone.json", task="t")
    (tmp_path / "latin.json").write_bytes(b'[{"id":\n"\xe9"}]')
    with pytest.raises(DataError, match="not UTF-8") as caught:
        read_llava(tmp_path / "latin.json", task="t")
    assert caught.value.where.endswith("latin.json:2")
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf" + json.dumps([llava("a")]).encode())
    assert len(read_llava(tmp_path / "bom.json", task="t").rows) == 1


def test_t18_placeholder_in_front(tmp_path):
    assert front_placeholder("What is <image> this <image>?") == "<image>\nWhat is  this ?"
    assert front_placeholder("no picture ") == "no picture "
    path = write(tmp_path / "f.json", [llava("a", "What is <image> this <image>?", image="a.png")])
    found, problems = read(path, placeholders="front")
    assert not problems and found[0].turns[0].text == "<image>\nWhat is  this ?"
    assert read(path)[1] == [("f.json:1:a", "2 <image> placeholder(s) for 1 image(s)")]


def test_row_json_round_trip(tmp_path):
    path = write(
        tmp_path / "f.json", [llava("ü", "<image>\nq", "😀", image="a.png", style="word", meta={"k": {"n": 1.5}})]
    )
    (one,) = read(path, image_root="/r")[0]
    stored = json.loads(json.dumps(row_to_json(one, root="0")))
    assert row_from_json(stored, root="/r") == one
    assert stored["root"] == "0" and "/r" not in json.dumps(stored)


def test_fast_enough_for_large_files(tmp_path):
    """20,000 rows on one line each within seconds: line counting is linear."""
    path = write(tmp_path / "f.json", [llava(f"r{k}") for k in range(20_000)], indent=0)
    found, problems = read(path)
    assert len(found) == 20_000 and not problems
    assert found[-1].source != found[0].source


def test_files_with_other_key_names(tmp_path):
    """TRACE's files hold ``prompt`` and ``answer``; a row without one of them is named, the others are kept."""
    path = tmp_path / "train.json"
    path.write_text(
        '[{"prompt": "1 + 1?", "answer": "2"}, {"prompt": "1 + 2?"}, {"prompt": "x", "answer": "y", "id": "z"}]'
    )
    loaded = read_llava(path, task="t", fields=("prompt", "answer"))
    assert [(row.question, row.answer) for row in loaded.rows] == [("1 + 1?", "2"), ("x", "y")]
    assert loaded.rows[1].id == "z"
    (problem,) = loaded.problems
    assert problem.what == "key 'answer' is missing or no text" and problem.where == f"{path}:1"


def test_a_text_alone_is_a_plain_text(tmp_path):
    """Kept as it is, blanks and all; a conversation cannot call itself plain."""
    path = tmp_path / "a.jsonl"
    rows = [{"id": 1, "text": " Once upon a time\n"}, {"text": " "}, {**llava("x"), "meta": {"raw": True}}]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    loaded = read_llava(path, task="t")
    first = loaded.rows[0]
    assert [(turn.role, turn.text) for turn in first.turns] == [("assistant", " Once upon a time\n")]
    assert first.meta == {"raw": True} and first.question == ""
    assert [(p.what, p.where) for p in loaded.problems] == [
        ("'text' is empty", f"{path}:2:row-2"),
        ("'raw' is for rows of text alone", f"{path}:3:x"),
    ]
