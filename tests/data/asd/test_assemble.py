"""What a converted question looks like."""

import pytest

from mcit.data.asd.assemble import Content, convert
from mcit.data.asd.cues import CUES
from mcit.data.asd.exchange import Exchange
from tests.fakes.rows import row

PART = Exchange("What is it?", "cat", (), "<image>\n", "")
ROW = row("<image>\nWhat is it?", "cat", images=("a",))


def made(style, content, first=0, part=PART):
    return convert(ROW, style, [(part, content)], first=first, seed=0)


def test_short_brief_and_detail():
    for style in ("short", "brief", "detail"):
        out = made(style, Content(text="It is a cat."))
        assert [t.text for t in out.turns] == [f"<image>\nWhat is it?\n{CUES[style]}", "It is a cat."]


def test_yes_and_no_take_turns():
    yes, no = (made("yn", Content(distractors=("dog",)), first=k) for k in (0, 1))
    assert yes.turns[0].text == f'<image>\nWhat is it?\nIs the correct answer "cat"?\n{CUES["yn"]}' and yes.answers == (
        "Yes",
    )
    assert 'Is the correct answer "dog"?' in no.turns[0].text and no.answers == ("No",)


@pytest.mark.parametrize("first, letter", [(0, "A"), (1, "B"), (2, "C"), (3, "D"), (4, "A")])
def test_the_right_option_moves_through_the_letters(first, letter):
    out = made("mcq", Content(distractors=("dog", "cow", "owl")), first=first)
    assert out.answers == (letter,) and out.options["ABCD".index(letter)] == "cat"
    assert sorted(out.options) == ["cat", "cow", "dog", "owl"]
    lines = out.turns[0].text.split("\n")
    assert lines[:2] == ["<image>", "What is it?"] and lines[-1] == CUES["mcq"]
    assert lines[2:6] == [f"{name}. {option}" for name, option in zip("ABCD", out.options, strict=True)]


def test_options_of_the_row_are_listed_without_letters():
    part = Exchange("Which of these?", "x", ("x", "y"))
    assert made("short", Content(text="x"), part=part).turns[0].text.startswith("Which of these?\nChoose from: x; y.\n")


def test_other_question_and_other_wording_of_the_answer():
    out = made("mcq", Content(("no, a bus", "yes, a pie", "no, a rat"), "", "Which?", "yes, a pear"))
    assert "Which?" in out.turns[0].text and "What is it?" not in out.turns[0].text and out.options[0] == "yes, a pear"


def test_all_turns_in_one_style_each_with_the_cue():
    second = Exchange("Which colour?", "red")
    parts = [(PART, Content(("dog",))), (second, Content(("blue",)))]
    out = convert(ROW, "yn", parts, first=1, seed=0)
    assert out.answers == ("No", "Yes") and [t.role for t in out.turns] == ["user", "assistant"] * 2
    assert all(turn.text.endswith(CUES["yn"]) for turn in out.turns[::2])
    assert sum(turn.text.count("<image>") for turn in out.turns) == 1
