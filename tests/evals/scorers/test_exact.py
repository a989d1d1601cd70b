"""Equality with one gold answer."""

import pytest

from mcit.evals.scorers.exact import Exact


@pytest.mark.parametrize(
    ("prediction", "answer", "strict", "fixed"),
    [
        ("Yes", "yes", 1, 1),
        ("2", "two", 0, 1),
        ("cat.", "cat", 0, 1),
        ("the cat", "cat", 0, 1),
        ("", "cat", 0, 0),
        ("", "the", 0, 0),
        ("the", "A", 0, 0),
        ("A.", "A", 0, 1),
        ("dog", "cat", 0, 0),
        ("straße", "STRASSE", 1, 0),  # upper-casing makes them equal, as in the published rule
        ("Unanswerable", "unanswerable", 1, 1),
    ],
)
def test_rules(prediction: str, answer: str, strict: float, fixed: float) -> None:
    scorer = Exact()
    assert scorer.strict(prediction, {"answer": answer}) == strict
    assert scorer.fixed(prediction, {"answer": answer}) == fixed


def test_lenient_finds_the_content_in_a_sentence() -> None:
    gold = {"answer": "red"}
    assert Exact().lenient("The car is red.", gold) == 1
    assert Exact().lenient("It is coloured", gold) == 0
