"""The gold answer stands in the prediction once blanks are gone (MLLM-CL's ability VP: space and counting).

Strict: both lower-cased, without blanks, line breaks and full stops, so "1" is found in "10" and "left" in "leftover".
Fixed: whole words after normalising.
"""

from __future__ import annotations

from mcit.evals.normalise import contains
from mcit.evals.scorers.base import Gold, Scorer, answer_of


class Spatial(Scorer):
    """Contained or not."""

    version = 2
    published = "MLLM-CL eval_sat.py"

    def strict(self, prediction: str, gold: Gold) -> float:
        """A part of the squeezed text."""
        return float(_squeezed(answer_of(gold)) in _squeezed(prediction))

    def fixed(self, prediction: str, gold: Gold) -> float:
        """Whole words after normalising."""
        return float(contains(prediction, answer_of(gold)))


def _squeezed(text: str) -> str:
    return text.lower().strip().replace(" ", "").replace("\n", "").replace(".", "")
