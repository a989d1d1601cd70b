"""Equality with the single gold answer, refusals apart (OCR-VQA).

Strict: equal in lower case; a text with "Unanswerable" in it is wrong, even where that is the gold answer. Fixed: equal
after normalising.
"""

from __future__ import annotations

from mcit.evals.normalise import same
from mcit.evals.scorers.base import Gold, Scorer, answer_of, refuses


class OcrVqa(Scorer):
    """Equal or not."""

    version = 2
    chooses = True
    published = "SEFE eval_ocrvqa.py"

    def strict(self, prediction: str, gold: Gold) -> float:
        """Equal in lower case."""
        return float(not refuses(prediction) and prediction.lower() == answer_of(gold).lower())

    def fixed(self, prediction: str, gold: Gold) -> float:
        """Equal after normalising."""
        return float(same(prediction, answer_of(gold)))
