"""Science questions of several sources in one set (Sci of MLLM-DCL).

The first part of the picture's file name says the source. AI2D, TQA, VQA and SciVerse: strict asks for equality in lower
case, and a text with "Unanswerable" in it is wrong; fixed takes any usual way of writing the letter, or equality after
normalising. Everything else is a question on a map: scorer ``mapqa``.
"""

from __future__ import annotations

from mcit.evals.normalise import same
from mcit.evals.parse import offered_letters, read_letter
from mcit.evals.scorers.base import Gold, Scorer, answer_of, refuses
from mcit.evals.scorers.mapqa import MapQa

_EXACT = ("AI2D", "TQA", "VQA", "SciVerse")


class Sci(Scorer):
    """Equal or not, or a share of a list of states."""

    version = 2
    published = "MCITlib eval_sci.py"

    def strict(self, prediction: str, gold: Gold) -> float:
        """By source."""
        if not _is_exact(gold):
            return MapQa().strict(prediction, gold)
        return float(not refuses(prediction) and prediction.lower() == answer_of(gold).lower())

    def fixed(self, prediction: str, gold: Gold) -> float:
        """By source."""
        if not _is_exact(gold):
            return MapQa().fixed(prediction, gold)
        answer, letters = answer_of(gold), offered_letters(gold)
        if len(answer) == 1 and answer.upper() in letters:
            return float(read_letter(prediction, letters) == answer.upper())
        return float(same(prediction, answer))

    def gold_problem(self, gold: Gold) -> str:
        """The rule needs a picture's name."""
        return "" if gold.get("image") else "has no picture, whose file name says which rule counts"


def _is_exact(gold: Gold) -> bool:
    return str(gold.get("image", "")).split("/")[-1].split("_")[0] in _EXACT
