"""The gold answer stands in the prediction (remote sensing and driving questions).

Strict: a gold answer of several words must be a part of the text. A gold answer of one word must stand in a text with
blanks next to a blank, a full stop or a comma, and anywhere in a text without blanks: "yes" is found in "eyes", "1" in
"10". A text with "Unanswerable" in it is wrong. Fixed: whole words after normalising.
"""

from __future__ import annotations

from mcit.evals.normalise import contains
from mcit.evals.scorers.base import Gold, Scorer, answer_of, refuses


class Contains(Scorer):
    """Contained or not."""

    def strict(self, prediction: str, gold: Gold) -> float:
        """The published boundary rules, case-sensitive."""
        answer = answer_of(gold)
        if refuses(prediction):
            return 0.0
        if " " in answer or " " not in prediction:
            return float(answer in prediction)
        edges = (f" {answer}", f"{answer} ", f"{answer}.", f"{answer},")
        return float(any(edge in prediction for edge in edges))

    def fixed(self, prediction: str, gold: Gold) -> float:
        """Whole words after normalising."""
        return float(contains(prediction, answer_of(gold)))
