"""The letter of a choice as CoIN reads it: the first letter that stands alone."""

import pytest

from mcit.evals.scorers.choice import Choice
from mcit.evals.scorers.coin_choice import CoinChoice

GOLD = {"answer": "B", "choices": ["wood", "iron", "stone"]}


@pytest.mark.parametrize("text", ["B", "b", "B.", "(B)", "B. iron", "it is b, or c", "The answer is B"])
def test_a_lone_letter_counts(text):
    assert CoinChoice().strict(text, GOLD) == 1


@pytest.mark.parametrize("text", ["", "iron", "I think B", "a bolt: B", "2 B", "C. b", "D", "_B"])
def test_the_first_one_alone(text):
    """A blank stands for letters that are no choice: "I" and "2" are read, and are wrong."""
    assert CoinChoice().strict(text, GOLD) == 0


def test_the_other_modes_are_those_of_choice():
    for text in ("B.", "iron", "b or c", ""):
        assert CoinChoice().fixed(text, GOLD) == Choice().fixed(text, GOLD)
    assert CoinChoice().lenient("it is iron", GOLD) == 1
