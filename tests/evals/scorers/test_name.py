"""Names of classes."""

import pytest

from mcit.evals.scorers.name import Name


@pytest.mark.parametrize(
    ("prediction", "strict", "fixed"),
    [("cat", 1, 0), ("", 1, 0), ("Tabby cat", 0, 1), ("a tabby cat.", 1, 1), ("tabby cat", 1, 1), ("dog", 0, 0)],
)
def test_t11(prediction: str, strict: float, fixed: float) -> None:
    """Oracle T11, gold "tabby cat": either contains the other; an empty text is in everything. Fixed: equality."""
    assert Name().strict(prediction, {"answer": "tabby cat"}) == strict
    assert Name().fixed(prediction, {"answer": "tabby cat"}) == fixed
