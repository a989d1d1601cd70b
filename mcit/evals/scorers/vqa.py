"""Soft accuracy against several human answers (TextVQA, VQA with ten references).

Each reference is left out once: the score is the mean over references of min(1, matches among the others / 3). With ten
references, k of them equal to the prediction give 0, 0.3, 0.6, 0.9, 1 for k = 0, 1, 2, 3, 4 and more. Fewer than four
references cannot give three matches among the others: then all the others are needed, and a single reference is
compared directly; the published script stops there, and so does the plan of a run in strict mode. Both modes share this;
they differ in the normaliser. Not here: ``min(1, matches / 3)``, another definition that is smaller for 1 to 3 matches.
"""

from __future__ import annotations

from collections.abc import Callable

from mcit.evals.normalise import normalise, normalise_fixed
from mcit.evals.scorers.base import Gold, Scorer, references

_ENOUGH, _TEN = 3, 10


class Vqa(Scorer):
    """Agreement with people who disagree."""

    version = 2
    published = "SEFE eval_textvqa.py (m4c_evaluator.py)"

    def gold_problem(self, gold: Gold) -> str:
        """The published rule takes ten answers and stops at any other number."""
        count = len(references(gold))
        return (
            "" if count == _TEN else f"has {count} reference answer{'s' * (count != 1)}, the published rule takes ten"
        )

    def strict(self, prediction: str, gold: Gold) -> float:
        """With the published normaliser."""
        return _soft(prediction, references(gold), normalise)

    def fixed(self, prediction: str, gold: Gold) -> float:
        """With the corrected normaliser."""
        return _soft(prediction, references(gold), normalise_fixed)


def _soft(prediction: str, answers: list[str], norm: Callable[[str], str]) -> float:
    text = norm(prediction)
    matches = [norm(answer) == text for answer in answers]
    if len(matches) == 1:
        return float(matches[0])
    needed, total = min(_ENOUGH, len(matches) - 1), sum(matches)
    # Integers until the end: means of thirds would depend on the order of the references.
    points = sum(min(needed, total - match) for match in matches)
    return points / (needed * len(matches))
