"""Science questions: the picture's name decides between equality and questions on maps."""

import pytest

from mcit.evals.scorers.sci import Sci

LETTER = {"answer": "B", "question": "Which?\nA. wood\nB. iron", "image": "Sci/images/TQA_12.png"}
WORD = {"answer": "iron", "question": "Which?", "image": "Sci/images/SciVerse_3.png"}
STATES = {"answer": "ohio,texas", "question": "Which states are red?", "image": "Sci/images/MapQA_4.png"}


@pytest.mark.parametrize(
    ("text", "gold", "strict", "fixed"),
    [
        ("b", LETTER, 1, 1),
        ("B.", LETTER, 0, 1),
        ("The answer is B", LETTER, 0, 1),
        ("A", LETTER, 0, 0),
        ("Iron", WORD, 1, 1),
        ("it is iron", WORD, 0, 0),
        ("iron.", WORD, 0, 1),
        ("Texas", STATES, 0.5, 0.5),
        ("texas, ohio", STATES, 0.5, 1),
        ("iron Unanswerable", WORD, 0, 0),
        ("it is iron", {**WORD, "image": "Sci/VQA.v2/MapQA_1.png"}, 1, 1),  # the file's name counts, not a folder's
    ],
)
def test_rules(text, gold, strict, fixed):
    assert Sci().strict(text, gold) == strict
    assert Sci().fixed(text, gold) == fixed


def test_a_row_without_a_picture_cannot_be_judged():
    assert Sci().gold_problem(WORD) == ""
    assert "no picture" in Sci().gold_problem({"answer": "iron"})
