"""Equality with the single gold answer (VQAv2, VizWiz, OCR-VQA, captions of one word).

Strict: equal after changing case, nothing else: "2" is not "two", "cat." is not "cat". Fixed: equal after normalising.
"""

from __future__ import annotations

from mcit.evals.normalise import same
from mcit.evals.scorers.base import Gold, Scorer, answer_of


class Exact(Scorer):
    """Equal or not."""

    def strict(self, prediction: str, gold: Gold) -> float:
        """Equal in upper or in lower case."""
        answer = answer_of(gold)
        return float(prediction.upper() == answer.upper() or prediction.lower() == answer.lower())

    def fixed(self, prediction: str, gold: Gold) -> float:
        """Equal after normalising."""
        return float(same(prediction, answer_of(gold)))
