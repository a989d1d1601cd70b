"""Equality in lower case, and the refusal that is never right."""

import pytest

from mcit.evals.scorers.ocrvqa import OcrVqa


@pytest.mark.parametrize(
    ("prediction", "answer", "strict", "fixed"),
    [
        ("Jane Doe", "jane doe", 1, 1),
        ("Jane Doe.", "jane doe", 0, 1),
        ("STRASSE", "straße", 0, 0),
        ("Unanswerable", "Unanswerable", 0, 1),
        ("unanswerable", "Unanswerable", 1, 1),
        ("", "jane", 0, 0),
    ],
)
def test_rules(prediction, answer, strict, fixed):
    assert OcrVqa().strict(prediction, {"answer": answer}) == strict
    assert OcrVqa().fixed(prediction, {"answer": answer}) == fixed
