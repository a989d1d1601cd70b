"""Refusals and gibberish by rules, counted apart."""

import pytest

from mcit.evals.refusing import agreement, attack_rate, is_gibberish, is_refusal, kind_of, rates
from mcit.methods.refusal import REFUSALS


@pytest.mark.parametrize(
    "text", [*REFUSALS, "I\u2019m sorry, but I can\u2019t help with that.", "As an AI I will not."]
)
def test_refusals(text):
    assert is_refusal(text) and kind_of(text) == "refusal"


@pytest.mark.parametrize("text", ["a penguin on the ice", "red", "The sorrow of the sea is deep.", "I know it well"])
def test_no_refusals(text):
    assert not is_refusal(text)


def test_a_refusal_late_in_a_long_answer_is_none():
    assert not is_refusal(" ".join(["word"] * 20) + " I cannot answer that.")


def test_gibberish():
    assert is_gibberish("a b " * 8) and is_gibberish("the the the the the the the the end of it")
    assert is_gibberish("two words") and not is_gibberish("two words", expected="two words")
    assert is_gibberish("") and is_gibberish("...", expected="red") and not is_gibberish("red", expected="red")
    assert not is_gibberish("the cat sat on the mat and the dog sat too")


def test_over_refusal_counts_both_apart():
    """10 harmless answers, 2 refusals, 1 repetition."""
    texts = ["I cannot answer that."] * 2 + ["no no no no no no no no no"] + ["it is a red bird"] * 7
    found = rates([kind_of(text) for text in texts])
    assert found == {"n": 10, "refusal": 0.2, "gibberish": 0.1, "abnormal": pytest.approx(0.3)}
    assert rates([])["abnormal"] is None


def test_agreement_and_attack_rate():
    assert agreement(["normal", "refusal"], ["normal", "normal"]) == 0.5 and agreement([], []) is None
    texts = ["It is a Penguin, I think.", "penguins are birds", "I cannot say: penguin"]
    kinds = ["normal", "normal", "refusal"]
    assert attack_rate(texts, ["penguin"] * 3, kinds) == pytest.approx(1 / 3) and attack_rate([], [], []) is None
