"""Files of answers: what is read, what is refused, what counts as the same."""

import json

import pytest

from mcit.core.errors import DataError
from mcit.data.asd.answers import content_of, load_answers
from mcit.data.asd.assemble import Content
from mcit.data.asd.exchange import Exchange, source_of
from tests.fakes.rows import row

ROW = row("What?", "cat", id="r1")
MADE = {"backend": "openai", "model": "m", "prompt": 1, "seed": 0, "attempt": 1}


def line(status="accepted", **fields):
    value = {
        "id": "r1",
        "style": "brief",
        "source": source_of(ROW),
        "status": status,
        "content": [{"text": "It is a cat."}] if status == "accepted" else [],
        "reasons": [] if status == "accepted" else ["too short"],
        "generator": MADE,
        **fields,
    }
    return json.dumps(value)


def written(tmp_path, *lines):
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_attempts_of_a_row(tmp_path):
    answers = load_answers(written(tmp_path, line("refused"), line(), line(style="detail")))
    first, second = answers.of(ROW, "brief")
    assert not first.accepted and first.reasons == ("too short",) and second.content == (Content(text="It is a cat."),)
    assert second.name == "openai:m:prompt-1:attempt-1"
    assert answers.of(ROW, "yn") == [] and not answers.stale(ROW, "yn") and not answers.stale(ROW, "brief")


def test_answers_to_another_version_of_the_row_are_stale(tmp_path):
    answers = load_answers(written(tmp_path, line(source="0" * 16)))
    assert answers.of(ROW, "brief") == [] and answers.stale(ROW, "brief")


def test_digest_knows_content_and_neither_time_nor_order(tmp_path):
    lines = [line(time="2025-01-01T00:00:00Z"), line(style="detail")]
    one = load_answers(written(tmp_path, *lines)).digest
    assert load_answers(written(tmp_path, line(style="detail"), line(time="later", reply="x"))).digest == one
    assert load_answers(written(tmp_path, line(content=[{"text": "other"}]), line(style="detail"))).digest != one


def test_torn_lines_are_counted(tmp_path):
    none = ["[" * 100_000, "9" * 5000]
    answers = load_answers(written(tmp_path, line(), line()[:40], *none, line(style="detail")))
    assert len(answers.entries) == 2 and answers.torn == 3


@pytest.mark.parametrize(
    "bad",
    [
        "[]",
        "{}",
        line(status="odd"),
        line(id=3),
        line(content=[]),
        line(content=[{"distractors": [1]}]),
        line(generator=1),
    ],
)
def test_lines_that_are_no_answers(tmp_path, bad):
    with pytest.raises(DataError, match="answers.jsonl:2: is no line of answers"):
        load_answers(written(tmp_path, line(), bad))


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="cannot be read.*asd_generate"):
        try:
            load_answers(tmp_path / "none.jsonl")
        except DataError as error:
            raise DataError(str(error).replace("\n", " ")) from None


def test_descriptions_of_boxes_are_asked_for_by_region(tmp_path):
    (entry,) = load_answers(written(tmp_path, line())).entries
    (content,) = content_of(entry, [Exchange("Where is the cat?", "[0.1, 0.1, 0.2, 0.2]")])
    assert content.question == "What is shown in the region [0.1, 0.1, 0.2, 0.2] of the image?"
    (content,) = content_of(entry, [Exchange("What?", "cat")])
    assert content.question == ""
