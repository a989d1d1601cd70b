"""The letter of a choice."""

import pytest

from mcit.evals.scorers.choice import Choice

CHOICES = ["wood", "iron", "stone", "paper"]

# Oracle T10, four choices. What the published parse reads, None where it fails.
T10 = {
    "B": "B",
    "B. iron": "B",
    "The answer is C.": "C",
    "B.": None,
    "b": None,
    "E": None,
    "Iron": None,
}


@pytest.mark.parametrize(("prediction", "letter"), T10.items())
def test_t10(prediction: str, letter: str | None) -> None:
    for gold in "ABCDE":
        row = {"answer": gold, "choices": CHOICES}
        expected = float(letter == gold)
        assert Choice().strict(prediction, row) == expected


def test_strict_keeps_its_defects() -> None:
    """The full stop of the sentence pattern is any one character, so a sentence must not end at the letter."""
    gold = {"answer": "C", "choices": CHOICES}
    assert Choice().strict("The answer is C!", gold) == 1
    assert Choice().strict("The answer is C", gold) == 0
    assert Choice().strict("The answer is C. The answer is C.", gold) == 0
    assert Choice().strict("ABC", {"answer": "A", "choices": CHOICES}) == 0
    assert Choice().strict("E", {"answer": "E", "choices": [*CHOICES, "glass"]}) == 1
    assert Choice().strict("F", {"answer": "F", "choices": [*CHOICES, "glass", "clay"]}) == 0
    assert Choice().strict("", gold) == 0
    assert Choice().strict("C. ", gold) == 1  # a letter, a full stop and a blank are enough
    assert Choice().strict("C.", gold) == 0


@pytest.mark.parametrize("text", ["B", "B.", "b", "(b)", "B) iron", "Answer: B", "The answer is B"])
def test_fixed_reads_usual_ways(text: str) -> None:
    assert Choice().fixed(text, {"answer": "B", "choices": CHOICES}) == 1
    assert Choice().fixed(text, {"answer": "A", "choices": CHOICES}) == 0


@pytest.mark.parametrize("text", ["", "iron", "E", "I do not know"])
def test_fixed_unanswered_is_wrong(text: str) -> None:
    for letter in "ABCD":
        assert Choice().fixed(text, {"answer": letter, "choices": CHOICES}) == 0


def test_lenient_takes_the_words_of_one_choice() -> None:
    gold = {"answer": "B", "choices": CHOICES}
    assert Choice().lenient("It is iron.", gold) == 1
    assert Choice().lenient("It is wood.", {"answer": "A", "choices": CHOICES}) == 1
    assert Choice().lenient("B", gold) == 1  # right already: no words are needed
    assert Choice().lenient("iron or wood", gold) == 0
    assert Choice().lenient("stone", gold) == 0
    assert Choice().lenient("iron", {"answer": "B"}) == 0  # without choices there are no words to find
