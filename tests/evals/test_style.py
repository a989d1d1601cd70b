"""Form of an answer, whatever it says."""

import time

import pytest

from mcit.core.errors import ConfigError
from mcit.evals.style import STYLES, VERSION, format_valid

CASES = {
    "letter": (["A", "D", "B."], ["E", "b", "(B)", "B. iron", "iron", "", "AB", "yes", "[0, 0, 1, 1]"]),
    "word": (["red", "Red.", "yes", "12", "x-ray"], ["a cat", "", "...", "[0,0,1,1]", "it is red"]),
    "name": (
        ["cat", "tabby cat", "big red car", "cat.", "ox"],
        ["yes", "No.", "a very big cat", "[0, 0, 1, 1]", "B", "B."],
    ),
    "phrase": (["in the left corner", "unanswerable", "a b c d e"], ["yes", "a b c d e f", "0.1, 0.2, 0.3, 0.4"]),
    "yes_no": (["yes", "No", "YES."], ["yes it is", "y", "maybe", ""]),
    "box": (
        ["[0.1, 0.2, 0.3, 0.4]", "0.1,0.2,0.3,1", "[0,0,1,1]"],
        ["[0.1, 0.2, 0.3]", "[1,2,3,4,5]", "[a, b, c, d]", "[0.1, 0.2, 0.3, 0.4", "box [0, 0, 1, 1]", "red"],
    ),
    "text": (["anything at all.", "x"], ["", "  \n"]),
}


@pytest.mark.parametrize("style", CASES)
def test_table(style: str) -> None:
    good, bad = CASES[style]
    meta = {"choices": ["p", "q", "r", "s"]}
    assert [text for text in good if not format_valid(text, style, meta)] == []
    assert [text for text in bad if format_valid(text, style, meta)] == []
    assert STYLES - set(CASES) == {"", "yn", "mcq", "short", "brief", "detail"}


def test_rules_have_the_version_that_stored_scores_name() -> None:
    """Raise it together with a rule and only then: another number makes every stored score of every user be made again."""
    assert VERSION == 1


@pytest.mark.parametrize("text", ["It is red.", "It is red", "red\ncar", "Red. Blue", "two cats.", "who knows?"])
def test_sentences_are_no_names(text: str) -> None:
    assert not format_valid(text, "name")
    assert not format_valid(text, "phrase")


def test_offered_letters_come_from_the_row() -> None:
    assert format_valid("E", "letter", {})
    assert not format_valid("C", "letter", {"choices": ["yes", "no"]})
    assert not format_valid("C", "letter", {"question": "Which?\nA. iron\nB. wood\n"})


def test_white_space_around_does_not_count() -> None:
    assert format_valid(" B\n", "letter", {"choices": ["x", "y"]})


def test_diversified_styles_and_unknown_ones() -> None:
    assert format_valid("yes", "yn")
    assert not format_valid("red", "yn")
    assert format_valid("a long text with many words.", "brief")
    assert format_valid("a long text with many words.", "")
    with pytest.raises(ConfigError, match="no answer style"):
        format_valid("x", "leter")


@pytest.mark.parametrize("text", ["0" * 60_000, "1." + "0" * 60_000, "0" * 30_000 + ", 1"])
def test_a_long_run_of_digits_costs_no_time(text):
    """A model may loop on one digit, and answers made elsewhere have any length: the time does not grow with the square."""
    begin = time.process_time()
    assert not format_valid(text, "box")
    assert all(isinstance(format_valid(text, style), bool) for style in STYLES)
    assert time.process_time() - begin < 3
