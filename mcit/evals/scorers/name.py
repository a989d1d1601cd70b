"""The name of a class (ImageNet).

Strict: gold in prediction or prediction in gold, case-sensitive: an empty prediction is right, "cat" is right for
"tabby cat". Fixed: equality after normalising.
"""

from __future__ import annotations

from mcit.evals.normalise import same
from mcit.evals.scorers.base import Gold, Scorer, answer_of


class Name(Scorer):
    """Right name or not."""

    version = 2
    published = "SEFE eval_imagenet.py"

    def strict(self, prediction: str, gold: Gold) -> float:
        """Either is a part of the other."""
        answer = answer_of(gold)
        return float(answer in prediction or prediction in answer)

    def fixed(self, prediction: str, gold: Gold) -> float:
        """Equal after normalising; an empty answer equals nothing."""
        return float(same(prediction, answer_of(gold)))
