"""A letter or yes/no (finance questions).

Strict: equal without regard to case after deleting blanks and full stops of the prediction, so "B. rise" is wrong; a
text with "Unanswerable" in it is wrong. Fixed: any usual way of writing the letter, or equality after normalising.
"""

from __future__ import annotations

from mcit.evals.normalise import same
from mcit.evals.parse import offered_letters, read_letter
from mcit.evals.scorers.base import Gold, Scorer, answer_of, refuses


class Fin(Scorer):
    """Equal or not."""

    version = 2
    chooses = True
    published = "MCITlib eval_finvis.py"

    def strict(self, prediction: str, gold: Gold) -> float:
        """Equal without blanks and full stops."""
        if refuses(prediction):
            return 0.0
        return float(prediction.lower().replace(" ", "").replace(".", "") == answer_of(gold).lower())

    def fixed(self, prediction: str, gold: Gold) -> float:
        """The letter, or the same words."""
        answer = answer_of(gold)
        letters = offered_letters(gold)
        if len(answer) == 1 and answer.upper() in letters:
            return float(read_letter(prediction, letters) == answer.upper())
        return float(same(prediction, answer))
