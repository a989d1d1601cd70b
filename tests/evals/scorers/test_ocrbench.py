"""Any accepted answer anywhere; formulas without blanks."""

import pytest

from mcit.evals.scorers.ocrbench import OcrBench

FORMULA = {"answer_type": "Handwritten Mathematical Expression Recognition"}


@pytest.mark.parametrize(
    ("gold", "prediction", "strict", "fixed"),
    [
        ({"answer": "Coca-Cola"}, "It says COCA-COLA.", 1, 1),
        ({"answer": "a", "answers": ["open", "OPEN 24"]}, "open 24 hours", 1, 1),
        ({"answer": "10"}, "1024", 1, 0),  # a part of another number
        ({"answer": "ab"}, "a\nb", 1, 0),  # line breaks vanish in the published rule
        ({"answer": "left"}, "right", 0, 0),
        ({"answer": "x ^ 2", **FORMULA}, "y = x^2", 1, 1),
        ({"answer": "X ^ 2", **FORMULA}, "x^2", 0, 0),  # case counts there
        ({"answer": "x"}, "", 0, 0),
    ],
)
def test_rules(gold, prediction, strict, fixed):
    assert OcrBench().strict(prediction, gold) == strict
    assert OcrBench().fixed(prediction, gold) == fixed
