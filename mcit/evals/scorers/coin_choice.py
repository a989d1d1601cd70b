"""The letter of a choice (ScienceQA), as CoIN's own script reads it; SEFE's reading is scorer ``choice``.

Strict: as there, but where SEFE looks for a sentence, the first letter or digit that stands alone counts, in upper case:
"A.", "a", "(A)", "Answer: A" are read as A, and so is "a dog". Fixed and lenient are those of ``choice``.
"""

from __future__ import annotations

import re

from mcit.evals.scorers.choice import Choice, plain_letter

_LONE = re.compile(r"\b(\w)\b")


class CoinChoice(Choice):
    """Right letter or not."""

    version = 2
    published = "CoIN eval_science_qa.py"

    def read(self, text: str) -> str | None:
        """What the script takes for the answer; None where it fails."""
        found = _LONE.search(text)
        return plain_letter(text) or (found[1].upper() if found else None)
