"""Questions taken apart and what cannot be."""

import time

import pytest

from mcit.core.types import Encoding, Row, Turn
from mcit.data.asd.exchange import UnusableRow, exchanges_of, framed, is_box, source_of, split_options
from mcit.data.sources.demo import KIND_PROMPT
from tests.fakes.rows import row

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


def test_short_question_with_picture_in_front_or_behind():
    (front,) = exchanges_of(row(f"<image>\nIs it red?\n{SHORT}", "yes", images=("a",)), native="short")
    assert (front.before, front.question, front.after, front.answer) == ("<image>\n", "Is it red?", "", "yes")
    assert front.is_yes_no and not front.is_box and front.asked == "Is it red?"
    (behind,) = exchanges_of(row(f"Is it red?\n{SHORT}\n<image>", "Red", images=("a",)), native="short")
    assert (behind.before, behind.question, behind.after) == ("", "Is it red?", "\n<image>") and not behind.is_yes_no


def test_letter_question_one_option_per_line_text_only():
    asked = f"Context: none\nWhich is a metal?\nA. iron\nB. dry wood\n{LETTER}"
    (part,) = exchanges_of(row(asked, "A"), native="mcq")
    assert part.question == "Context: none\nWhich is a metal?" and part.options == ("iron", "dry wood")
    assert part.answer == "iron"
    assert part.asked == "Context: none\nWhich is a metal?\nChoose from: iron; dry wood."


@pytest.mark.parametrize("gold", ["B", "B.", "(B)", "B. food"])
def test_letter_question_in_one_line(gold):
    (part,) = exchanges_of(row(f"<image>\n{KIND_PROMPT}", gold, images=("a",)), native="mcq")
    assert part.question == "What kind of thing is this?" and part.answer == "food"
    assert part.options == ("animal", "food", "vehicle", "object")


def test_several_turns():
    parts = exchanges_of(row(f"<image>\nOne?\n{SHORT}", "1", "Two?", "2", images=("a",)), native="short")
    assert [(p.before, p.question, p.answer) for p in parts] == [("<image>\n", "One?", "1"), ("", "Two?", "2")]


@pytest.mark.parametrize(
    "texts, native, reason",
    [
        ((f"Which?\nA. x\nB. y\n{LETTER}", "C"), "mcq", "not the letter of an option"),
        ((f"Which?\nA. x\nB. y\n{LETTER}", "Both"), "mcq", "not the letter of an option"),
        ((f"Which?\n{LETTER}", "A"), "mcq", "no options"),
        (("Is <image> like <image>?", "no"), "short", "inside the question"),
        ((SHORT, "no"), "short", "nothing but a cue"),
    ],
)
def test_what_cannot_be_taken_apart(texts, native, reason):
    with pytest.raises(UnusableRow, match=reason):
        exchanges_of(row(*texts), native=native)


def test_a_plain_text_is_no_question():
    plain = Row("r", (), (Turn("assistant", "text"),), "t", "f:1", encoding=Encoding(raw=True))
    with pytest.raises(UnusableRow, match="plain text"):
        exchanges_of(plain, native="short")


def test_options_need_their_order_and_an_earlier_letter_is_no_option():
    assert split_options("Vitamin A. is what?\nA. sour\nB. sweet") == ("Vitamin A. is what?", ("sour", "sweet"))
    assert split_options("What?\nA. x\nC. y") is None and split_options("What?") is None
    assert split_options("What?\n(A) x (B) y\nHint: z") == ("What?\nHint: z", ("x", "y"))


def test_choices_of_the_row_win_over_what_stands_in_the_question():
    asked = f"Which?\nA. x\nB. y\n{LETTER}"
    (part,) = exchanges_of(row(asked, "B", meta={"choices": ["first", "second"]}), native="mcq")
    assert part.answer == "second"
    (part,) = exchanges_of(row(asked, "B", meta={"choices": ["only one"]}), native="mcq")
    assert part.answer == "y"


def test_source_follows_questions_answers_and_pictures():
    sources = [
        source_of(row("q", "a")),
        source_of(row("q", "b")),
        source_of(row("q2", "a")),
        source_of(row("q", "a", images=("x",))),
    ]
    assert len(set(sources)) == 4
    assert source_of(row("q", "a", id="other", root="/x", style="word")) == sources[0]


@pytest.mark.parametrize(
    "text",
    [
        "a" + " " * 200_000 + "b",
        "a" + "<image> " * 100_000 + "b",
        "<image>\n" * 100_000 + "a" + "\n<image>" * 100_000,
        "A. x " * 50_000,
        "[" + "1" * 200_000,
    ],
    ids=["blanks", "pictures inside", "pictures around", "options", "digits"],
)
def test_a_very_long_text_takes_no_longer_than_its_length(text):
    """Half a minute and more before; 40 placeholders with blanks between, inside a question, would have taken days."""
    began = time.process_time()
    before, middle, after = framed(text)
    assert before + middle + after == text
    assert split_options(text) is None and not is_box(text)
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ("", "", "")),
        (" \n", ("", " \n", "")),
        ("<image>\n <image> a\nb \n<image> <image>\n", ("<image>\n <image> ", "a\nb", " \n<image> <image>\n")),
        (" <image> ", (" <image> ", "", "")),
        ("a <image> b<image>", ("", "a <image> b", "<image>")),
    ],
)
def test_placeholders_around_a_text(text, parts):
    assert framed(text) == parts


def test_boxes():
    assert is_box("[0.1, 0.2, 1, .5]") and not is_box("0.1, 0.2, 1, 0.5") and not is_box("[0.1, 0.2, 1]")
    assert is_box("[ 1.,2 , .3,44.5 ]") and not is_box("[1, 2, 3, .]")
