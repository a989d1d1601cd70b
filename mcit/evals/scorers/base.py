"""What a scorer is: two rules for one answer, and what a style-free reader would have accepted.

``strict`` is the rule of the published code with its defects, for comparison with papers. ``fixed`` is the same idea
without the defects. ``lenient`` asks only whether the content is somewhere in the answer: its distance to ``strict`` is
the part of the loss that is a matter of form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from mcit.core.errors import DataError
from mcit.evals.normalise import contains

Gold = Mapping[str, Any]
"""``answer``, and where the row has them ``answers``, ``choices``, ``box``, ``size``, ``image``, ``question``, ``style``."""
Mode = Literal["strict", "fixed"]
MODES: tuple[Mode, ...] = ("strict", "fixed")
_MOST_CONSTANTS = 200


class Scorer:
    """Base of all scorers: pure functions from an answer and its gold to a share of 0 to 1."""

    version: ClassVar[int] = 1
    """Goes up when a rule changes; scores of another version are computed again."""
    chooses: ClassVar[bool] = False
    """Whether a row's answer may be chosen among its options instead of written (`eval.options: forward`): true where the rule
    compares a whole letter or word."""
    requires: ClassVar[str] = ""
    """Library that the rules need beside mcit's own."""
    published: ClassVar[str] = ""
    """Repository and file of the script whose rule `strict` is; goes into every score."""

    def strict(self, prediction: str, gold: Gold) -> float:
        """The published rule, defects included."""
        raise NotImplementedError

    def fixed(self, prediction: str, gold: Gold) -> float:
        """The rule without the defects."""
        raise NotImplementedError

    def lenient(self, prediction: str, gold: Gold) -> float:
        """1 if a gold answer stands in the answer as whole words, else what `strict` or `fixed` gives."""
        if any(contains(prediction, answer) for answer in references(gold)):
            return 1.0
        return max(self.strict(prediction, gold), self.fixed(prediction, gold))

    def gold_problem(self, gold: Gold) -> str:
        """Why the published rule cannot judge a row with this gold; empty if it can."""
        return ""

    def score(self, prediction: str, gold: Gold, *, mode: Mode) -> float:
        """One answer under one of the two rules."""
        return self.strict(prediction, gold) if mode == "strict" else self.fixed(prediction, gold)

    def corpus(self, predictions: Sequence[str], golds: Sequence[Gold]) -> dict[str, float]:
        """Metrics of all rows together that are no mean over rows, by name; none by default."""
        return {}

    def constants(self, golds: Sequence[Gold]) -> list[str]:
        """Answers that a model which ignores the question might always give: the most frequent gold answers."""
        counts = Counter(answer for gold in golds for answer in references(gold))
        return [answer for answer, _ in counts.most_common(_MOST_CONSTANTS)]


def references(gold: Gold) -> list[str]:
    """All gold answers of a row: its ``answers`` if there are any, else its ``answer``."""
    return [str(answer) for answer in gold.get("answers") or [gold["answer"]]]


def answer_of(gold: Gold) -> str:
    """The gold answer. Raises DataError if the row has none."""
    if not str(gold.get("answer", "")):
        raise DataError("the test row has no gold answer", where=str(gold.get("question", "")), fix="add its answer")
    return str(gold["answer"])


def refuses(prediction: str) -> bool:
    """Whether the published domain scorers would skip the answer as a refusal."""
    return "Unanswerable" in prediction
