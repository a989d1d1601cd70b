"""Lists of states, or one answer (questions on maps).

A question with "Which states" in it asks for a list: the share of the gold states that were named. Strict: parts
between commas must be equal as they are, so a blank after a comma makes a part differ, and naming every state costs
nothing. Fixed: parts are trimmed and normalised, and the share is of the longer of the two lists. Other questions: the
gold answer stands in the prediction (strict: as a part of the text, and a text with "Unanswerable" is wrong; fixed: as
whole words).
"""

from __future__ import annotations

from mcit.evals.normalise import contains, normalise_fixed
from mcit.evals.scorers.base import Gold, Scorer, answer_of, refuses


class MapQa(Scorer):
    """Share of a list, or contained or not."""

    version = 2
    published = "MCITlib eval_sci.py"

    def strict(self, prediction: str, gold: Gold) -> float:
        """The published split at commas."""
        answer = answer_of(gold)
        if refuses(prediction):
            return 0.0
        if not _asks_list(gold):
            return float(answer.lower() in prediction.lower())
        wanted, named = answer.lower().split(","), prediction.lower().split(",")
        return sum(part in named for part in wanted) / len(wanted)

    def fixed(self, prediction: str, gold: Gold) -> float:
        """Trimmed parts; names too many count against the answer."""
        if not _asks_list(gold):
            return float(contains(prediction, answer_of(gold)))
        wanted, named = _parts(answer_of(gold)), _parts(prediction)
        return len(wanted & named) / max(len(wanted), len(named), 1)


def _asks_list(gold: Gold) -> bool:
    return "Which states" in str(gold.get("question", ""))


def _parts(text: str) -> set[str]:
    return {normalise_fixed(part) for part in text.split(",")} - {""}
