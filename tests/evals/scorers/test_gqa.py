"""GQA: final full stops and case of the prediction do not count."""

import pytest

from mcit.evals.scorers.gqa import Gqa


@pytest.mark.parametrize(
    ("prediction", "answer", "strict", "fixed"),
    [
        ("Yes.", "yes", 1, 1),
        ("yes..", "yes", 1, 1),
        ("yes", "Yes", 0, 1),  # only the prediction is lower-cased
        ("the left", "left", 0, 1),
        ("", "left", 0, 0),
    ],
)
def test_rules(prediction: str, answer: str, strict: float, fixed: float) -> None:
    assert Gqa().strict(prediction, {"answer": answer}) == strict
    assert Gqa().fixed(prediction, {"answer": answer}) == fixed
