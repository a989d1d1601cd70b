"""The five answer styles and the one line of text that asks for each of them.

Chen et al., "SEFE", ICML 2025, arXiv:2505.02486, section on answer style diversification (ASD). The cues of ``mcq`` and
``short`` are LLaVA's, which the authors' code and data use; the other three strings are ours, since theirs are not
published. A style has the same cue in every task: that is what lets a model read the wanted form off the question.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

STYLES = ("yn", "mcq", "short", "brief", "detail")
CUES = {
    "yn": "Answer with Yes or No.",
    "mcq": "Answer with the option's letter from the given choices directly.",
    "short": "Answer the question using a single word or phrase.",
    "brief": "Answer with a brief explanation or description in one or two sentences.",
    "detail": "Answer with a detailed explanation or description in several sentences.",
}
OTHER_CUES = ("Answer with one word.", "Answer yes or no.", "Answer with the letter.", "Answer with its name.")
"""Cues of the bundled tasks' own rows; taken off before another cue is put on, never put on."""
STYLE_OF = {"letter": "mcq", "word": "short", "name": "short", "phrase": "short", "box": "short", "yes_no": "yn"}
"""The answer style of the paper that a row's own style belongs to."""
LIMITS: dict[Literal["brief", "detail"], tuple[int, int]] = {"brief": (8, 45), "detail": (25, 90)}
"""Fewest and most words of an explanation; about 20 and about 50 are asked for."""


def native_style(style: str) -> str | None:
    """The paper's style for a row's own; None where it has none."""
    return style if style in STYLES else STYLE_OF.get(style)


def without_cue(question: str, more: Sequence[str] = ()) -> str:
    """The question without the cue at its end, be it one of the table, of the bundled tasks or of `more`."""
    text = question.rstrip()
    for cue in sorted((*CUES.values(), *OTHER_CUES, *more), key=len, reverse=True):
        if text.endswith(cue):
            return text[: -len(cue)].rstrip()
    return text


def words(text: str) -> int:
    """Length of an explanation."""
    return len(text.split())
