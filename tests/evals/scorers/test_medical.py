"""Containment of pathology answers."""

import pytest

from mcit.evals.scorers.medical import Medical


@pytest.mark.parametrize(
    ("answer", "prediction", "strict", "fixed"),
    [
        ("no", "I do not know", 1, 0),  # oracle T22: "no" is in "not" and in "know"
        ("No", "No, it is not.", 1, 1),
        ("liver", "The Liver.", 1, 1),
        ("liver", "kidney", 0, 0),
        ("yes", "yes Unanswerable", 0, 1),
    ],
)
def test_rules(answer: str, prediction: str, strict: float, fixed: float) -> None:
    assert Medical().strict(prediction, {"answer": answer}) == strict
    assert Medical().fixed(prediction, {"answer": answer}) == fixed
