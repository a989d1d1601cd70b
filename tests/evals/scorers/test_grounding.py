"""Boxes: the published parse with its lost characters, and a whole one."""

import pytest

from mcit.core.errors import DataError
from mcit.evals.scorers.grounding import Grounding, gold_box, published_box


@pytest.mark.parametrize(
    ("text", "box"),
    [
        # Oracle T8: brackets go, then the first and the last character.
        ("[0.15, 0.20, 0.47, 0.36]", (0.15, 0.20, 0.47, 0.3)),
        ("[1.0,0.1,1.0,0.9]", (0.0, 0.1, 1.0, 0.0)),
        ("[0.1, 0.2, 0.3]", None),
        ("a red car", None),
        ("", None),
    ],
)
def test_t8_published_parse(text: str, box: tuple | None) -> None:
    assert published_box(text) == box


def test_t8_against_itself() -> None:
    """Oracle T8: 0.19 is read as 0.1, the height is 0, so a box does not match itself; fixed: it does."""
    gold = {"answer": "[0.10,0.10,0.50,0.19]", "box": [0.10, 0.10, 0.50, 0.19]}
    assert Grounding().strict(gold["answer"], gold) == 0
    assert Grounding().fixed(gold["answer"], gold) == 1


def test_t7_threshold() -> None:
    """Oracle T7: exactly half is wrong under > 0.5 and right under >= 0.5. Strict reads 00,0,1,0.50 as 0,0,1,0.5."""
    gold = {"answer": "", "box": [0, 0, 1, 1]}
    half = "[00,0,1,0.50]"
    assert published_box(half) == (0.0, 0.0, 1.0, 0.5)
    assert Grounding().strict(half, gold) == 0
    assert Grounding().fixed(half, gold) == 1
    assert Grounding().strict("[00,0,1,0.510]", gold) == 1
    assert Grounding().fixed("[0,0,1,0.49]", gold) == 0


def test_rounding_does_not_decide() -> None:
    """Half of a box whose coordinates have no exact binary form is still half: 0.1..0.3 against 0.1..0.5."""
    assert Grounding().fixed("[0.1, 0.1, 0.3, 0.3]", {"box": [0.1, 0.1, 0.5, 0.3]}) == 1


def test_overlap_is_compared_at_nine_decimals() -> None:
    """Of the unit square: 0.4999999998 is 0.500000000 at nine decimals, 0.4999999990 is not."""
    gold = {"box": [0, 0, 1, 1]}
    assert Grounding().fixed("[0, 0, 1, 0.4999999998]", gold) == 1
    assert Grounding().fixed("[0, 0, 1, 0.4999999990]", gold) == 0


def test_gold_comes_from_the_answer_if_there_is_no_box() -> None:
    assert gold_box({"answer": "[0.1, 0.2, 0.3, 0.4]"}) == (0.1, 0.2, 0.3, 0.4)
    assert gold_box({"answer": "x", "box": ["0.1", "0.2", "0.3", "0.4"]}) == (0.1, 0.2, 0.3, 0.4)
    with pytest.raises(DataError, match="no gold box"):
        gold_box({"answer": "a car", "question": "Where?"})


def test_constants_hold_the_whole_picture_and_every_box() -> None:
    golds = [{"box": [0, 0, 0.5, 0.5]}, {"box": [0.5, 0.5, 1, 1]}, {"box": [0, 0, 0.5, 0.5]}]
    texts = Grounding().constants(golds)
    assert "[0.0000, 0.0000, 1.0000, 1.0000]" in texts
    assert "[0.1667, 0.1667, 0.6667, 0.6667]" in texts
    assert len(texts) == len(set(texts)) == 4
