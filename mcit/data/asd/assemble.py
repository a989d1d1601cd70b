"""Question and answer of one style, from a question taken apart and the content that the style needs."""

from __future__ import annotations

import random
from dataclasses import dataclass

from mcit.core.seeds import seed_for
from mcit.core.types import Row, Turn
from mcit.data.asd.cues import CUES
from mcit.data.asd.exchange import Exchange

OPTIONS = 4
"""Options of a converted multiple-choice question."""
LETTERS = "ABCD"


@dataclass(frozen=True)
class Content:
    """What a rule or a model contributes to one question."""

    distractors: tuple[str, ...] = ()
    """Wrong answers: one for ``yn``, three for ``mcq``."""
    text: str = ""
    """The answer itself, for ``short``, ``brief`` and ``detail``."""
    question: str = ""
    """Takes the place of the row's question, where another one has to be asked."""
    answer: str = ""
    """Takes the place of the row's answer among options and proposals."""


@dataclass(frozen=True)
class Converted:
    """A row's turns in the new style."""

    turns: tuple[Turn, ...]
    answers: tuple[str, ...]
    options: tuple[str, ...]
    """Of the last question, where options are offered."""


def convert(row: Row, style: str, parts: list[tuple[Exchange, Content]], *, first: int, seed: int) -> Converted:
    """All questions of a row in one style.

    `first` counts the questions of this style before the row: every second proposal is the right one, and the right
    option moves through A, B, C and D, so that over a style no answer is more frequent than another by more than one.
    """
    turns: list[Turn] = []
    answers: list[str] = []
    options: tuple[str, ...] = ()
    for number, (exchange, content) in enumerate(parts):
        draw = random.Random(seed_for(seed, "asd", style, row.id, number))
        question, answer, options = _converted(style, exchange, content, first + number, draw)
        text = f"{exchange.before}{question}\n{CUES[style]}{exchange.after}"
        turns += [Turn("user", text), Turn("assistant", answer)]
        answers.append(answer)
    return Converted(tuple(turns), tuple(answers), options)


def _converted(
    style: str, exchange: Exchange, content: Content, number: int, draw: random.Random
) -> tuple[str, str, tuple[str, ...]]:
    """Question without cue, answer, options."""
    right = content.answer or exchange.answer
    if style == "mcq":
        options = list(content.distractors)
        draw.shuffle(options)
        options.insert(number % OPTIONS, right)
        lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True)]
        return "\n".join([content.question or exchange.question, *lines]), LETTERS[number % OPTIONS], tuple(options)
    asked = content.question or exchange.asked
    if style == "yn":
        true = number % 2 == 0
        proposed = right if true else content.distractors[0]
        return f'{asked}\nIs the correct answer "{proposed}"?', "Yes" if true else "No", ()
    return asked, content.text, ()
