"""The gold answer stands in the prediction (remote sensing and driving questions of MLLM-DCL).

Strict: both sides are lower-cased. A gold answer of several words must be a part of the text. A gold answer of one word
loses its full stops ("3.5" becomes "35"); then it must stand in a text with blanks next to a blank, a full stop or a
comma, and anywhere in a text without blanks: "yes" is found in "eyes", "1" in "10". A text with "Unanswerable" in it is
wrong. Fixed: whole words after normalising. An older script of MLLM-CL asks for any part of the text: scorer ``medical``.
"""

from __future__ import annotations

from mcit.evals.normalise import contains
from mcit.evals.scorers.base import Gold, Scorer, answer_of, refuses


class Contains(Scorer):
    """Contained or not."""

    version = 3
    published = "MCITlib eval_ai2d.py"

    def strict(self, prediction: str, gold: Gold) -> float:
        """The published boundary rules."""
        if refuses(prediction):
            return 0.0
        answer, text = answer_of(gold).lower(), prediction.lower()
        if " " in answer:
            return float(answer in text)
        answer = answer.replace(".", "")
        if " " not in text:
            return float(answer in text)
        edges = (f" {answer}", f"{answer} ", f"{answer}.", f"{answer},")
        return float(any(edge in text for edge in edges))

    def fixed(self, prediction: str, gold: Gold) -> float:
        """Whole words after normalising."""
        return float(contains(prediction, answer_of(gold)))
