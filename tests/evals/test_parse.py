"""Letters, boxes, overlap."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcit.evals.parse import iou, offered_letters, read_box, read_letter


def test_t7_overlap() -> None:
    """Oracle T7. Unit square and its lower half: 0.5 / 1.

    Two 0.4 x 0.4 boxes shifted by 0.2: 0.08 / (0.16 + 0.16 - 0.08). 0.4 x 0.4 in 0.4 x 0.47: 0.16 / 0.188 = 0.851064.
    """
    assert iou((0, 0, 1, 1), (0, 0, 1, 0.5)) == 0.5
    assert iou((0.1, 0.1, 0.5, 0.5), (0.3, 0.1, 0.7, 0.5)) == pytest.approx(1 / 3)
    assert iou((0.1, 0.1, 0.5, 0.5), (0.1, 0.1, 0.5, 0.57)) == pytest.approx(0.851064, abs=1e-6)


def test_no_overlap_and_no_area() -> None:
    assert iou((0, 0, 0.4, 0.4), (0.5, 0.5, 1, 1)) == 0.0
    assert iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0.0
    assert iou((0.5, 0.5, 0.1, 0.1), (0.5, 0.5, 0.1, 0.1)) == 0.0


coordinate = st.floats(0, 1)
box = st.tuples(coordinate, coordinate, coordinate, coordinate)


@given(box, box)
def test_overlap_is_symmetric_and_a_share(a: tuple, b: tuple) -> None:
    assert iou(a, b) == pytest.approx(iou(b, a))
    assert 0.0 <= iou(a, b) <= 1.0 + 1e-9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[0.1, 0.2, 0.3, 0.4]", (0.1, 0.2, 0.3, 0.4)),
        ("the box is 0.1,0.2,.3,1", (0.1, 0.2, 0.3, 1.0)),
        ("[0.1, 0.2, 0.3]", None),
        ("[0.1, 0.2, 0.3, 0.4, 0.5]", None),
        ("no box", None),
    ],
)
def test_read_box(text: str, expected: tuple | None) -> None:
    assert read_box(text) == expected


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("B.", "B"),
        ("(b)", "B"),
        (" B) ", "B"),
        ("B. iron", "B"),
        ("(B) iron", "B"),
        ("B: iron", "B"),
        ("The answer is B", "B"),
        ("the answer is (B).", "B"),
        ("Option B", "B"),
        ("answer: B", "B"),
        ("E", None),
        ("The answer is E", None),
        ("iron", None),
        ("A cat", None),
        ("Because", None),
        ("The answer is B or the answer is C.", None),
        ("", None),
        ("AB", None),
    ],
)
def test_read_letter(text: str, letter: str | None) -> None:
    assert read_letter(text, "ABCD") == letter


def test_offered_letters() -> None:
    assert offered_letters({"choices": ["x", "y", "z"]}) == "ABC"
    assert offered_letters({"question": "Which?\nA. iron\nB. wood\nAnswer with the letter."}) == "AB"
    assert offered_letters({"question": "What is it? A. animal B. food C. vehicle D. object"}) == "ABCD"
    assert offered_letters({"question": "Is vitamin A. good?"}) == "ABCDE"
    assert offered_letters({}) == "ABCDE"
    assert len(offered_letters({"choices": list(range(40))})) == 26
