"""Containment with the published boundaries, and with real ones."""

import pytest

from mcit.evals.scorers.contains import Contains


@pytest.mark.parametrize(
    ("answer", "prediction", "strict", "fixed"),
    [
        # Oracle T12
        ("yes", "eyes", 1, 0),
        ("A", "the answer is A.", 1, 1),
        ("1", "10", 1, 0),
        ("cat", "a dog", 0, 0),
        # boundaries of single words in texts with blanks
        ("yes", "my eyesight fails", 0, 0),
        ("yes", "my eyes hurt", 1, 0),
        ("yes", "well yes", 1, 1),
        ("yes", "oh, yes, sure", 1, 1),
        ("left", "it is (left)", 0, 1),
        # several words: any part
        ("red car", "a red cart", 1, 0),
        ("red car", "a red car.", 1, 1),
        # refusals
        ("yes", "yes Unanswerable", 0, 1),
        ("Yes", "yes", 1, 1),
        ("cat", "", 0, 0),
    ],
)
def test_rules(answer: str, prediction: str, strict: float, fixed: float) -> None:
    assert Contains().strict(prediction, {"answer": answer}) == strict
    assert Contains().fixed(prediction, {"answer": answer}) == fixed
