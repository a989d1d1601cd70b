"""The letter of a choice (ScienceQA), as SEFE reads it; CoIN's own reading is scorer ``coin_choice``.

Strict: the whole text is a letter A to E; or it starts with a letter, a full stop and a blank; or "The answer is X"
followed by any one character stands in it exactly once. "B." alone is wrong, and so is "b".
Fixed: see `mcit.evals.parse.read_letter`. In both, an answer that names no offered letter is wrong.
"""

from __future__ import annotations

import re

from mcit.evals.normalise import contains
from mcit.evals.parse import offered_letters, read_letter
from mcit.evals.scorers.base import Gold, Scorer, answer_of

_SENTENCE = re.compile(r"The answer is ([A-Z]).")
KNOWN = "ABCDE"


class Choice(Scorer):
    """Right letter or not."""

    version = 3
    chooses = True
    published = "SEFE eval_science_qa.py"

    def strict(self, prediction: str, gold: Gold) -> float:
        """The published parse; a letter beyond E or beyond the row's choices is wrong."""
        letter = self.read(prediction)
        offered = KNOWN[: len(offered_letters(gold))]
        return float(letter is not None and letter in offered and letter == _gold(gold))

    def read(self, text: str) -> str | None:
        """What the script takes for the answer; None where it fails."""
        plain = plain_letter(text)
        found = [plain] if plain else _SENTENCE.findall(text)
        return found[0] if len(found) == 1 else None

    def fixed(self, prediction: str, gold: Gold) -> float:
        """Any usual way of writing the letter."""
        return float(read_letter(prediction, offered_letters(gold)) == _gold(gold))

    def lenient(self, prediction: str, gold: Gold) -> float:
        """The letter, or the words of the right choice and of no other."""
        plain = max(self.strict(prediction, gold), self.fixed(prediction, gold))
        choices, letter = list(gold.get("choices") or []), _gold(gold)
        at = offered_letters(gold).find(letter)
        if plain or not 0 <= at < len(choices):
            return plain
        named = {i for i, choice in enumerate(choices) if contains(prediction, str(choice))}
        return float(named == {at})


def plain_letter(text: str) -> str | None:
    """A letter A to E that is the whole text, or that starts it before a full stop and a blank."""
    alone = len(text) == 1 or text[1:3] == ". "
    return text[0] if text and text[0] in KNOWN and alone else None


def _gold(gold: Gold) -> str:
    return answer_of(gold).strip().rstrip(".").upper()
