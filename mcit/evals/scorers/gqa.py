"""Equality after lower-casing, final full stops of the answer ignored (GQA).

Strict: the published conversion touches the prediction only. Fixed: equality after normalising both sides.
"""

from __future__ import annotations

from mcit.evals.normalise import same
from mcit.evals.scorers.base import Gold, Scorer, answer_of


class Gqa(Scorer):
    """Equal or not."""

    version = 2
    chooses = True
    published = "CoIN convert_gqa_for_eval.py, eval_gqa.py"

    def strict(self, prediction: str, gold: Gold) -> float:
        """Equal to the gold answer as it is written there."""
        return float(prediction.rstrip(".").lower() == answer_of(gold))

    def fixed(self, prediction: str, gold: Gold) -> float:
        """Equal after normalising both sides."""
        return float(same(prediction, answer_of(gold)))
