"""The gold answer stands in the prediction, case ignored (pathology questions).

Strict: as a part of the text, so "no" is found in "I do not know"; a text with "Unanswerable" in it is wrong.
Fixed: whole words after normalising.
"""

from __future__ import annotations

from mcit.evals.normalise import contains
from mcit.evals.scorers.base import Gold, Scorer, answer_of, refuses


class Medical(Scorer):
    """Contained or not."""

    version = 2
    published = "MLLM-CL eval_pvqa.py"

    def strict(self, prediction: str, gold: Gold) -> float:
        """A part of the lower-cased text."""
        return float(answer_of(gold).lower() in prediction.lower() and not refuses(prediction))

    def fixed(self, prediction: str, gold: Gold) -> float:
        """Whole words after normalising."""
        return float(contains(prediction, answer_of(gold)))
