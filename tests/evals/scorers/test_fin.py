"""Letters and yes/no of finance questions."""

import pytest

from mcit.evals.scorers.fin import Fin


@pytest.mark.parametrize(
    ("answer", "prediction", "strict", "fixed"),
    [
        # Oracle T21
        ("B", "B.", 1, 1),
        ("B", "b", 1, 1),
        ("B", "B. rise", 0, 1),
        ("yes", "Yes.", 1, 1),
        # beyond it
        ("B", "A", 0, 0),
        ("5", "five", 0, 1),
        ("yes", "no", 0, 0),
        ("yes", "", 0, 0),
        ("B", "B Unanswerable", 0, 0),
        ("no", "N o", 1, 0),  # blanks inside the text do not count in the published rule
    ],
)
def test_rules(answer: str, prediction: str, strict: float, fixed: float) -> None:
    assert Fin().strict(prediction, {"answer": answer}) == strict
    assert Fin().fixed(prediction, {"answer": answer}) == fixed
