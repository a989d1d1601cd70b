"""Contained without blanks and full stops."""

import pytest

from mcit.evals.scorers.spatial import Spatial


@pytest.mark.parametrize(
    ("answer", "prediction", "strict", "fixed"),
    [
        ("left", "On the left.", 1, 1),
        ("2", "There are 2 cups", 1, 1),
        ("1", "10", 1, 0),
        ("in front", "infront", 1, 0),  # blanks do not count in the published rule
        ("yes", "Yes.", 1, 1),
        ("3.5", "35", 1, 0),
        ("left", "right", 0, 0),
        ("left", "", 0, 0),
    ],
)
def test_rules(answer, prediction, strict, fixed):
    assert Spatial().strict(prediction, {"answer": answer}) == strict
    assert Spatial().fixed(prediction, {"answer": answer}) == fixed
