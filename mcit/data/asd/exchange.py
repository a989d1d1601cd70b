"""A row's questions taken apart: pictures, question, options and cue separately, so that another style can be put on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mcit.core.files import digest_of
from mcit.core.types import Row
from mcit.data.asd.cues import without_cue
from mcit.data.placeholder import PLACEHOLDER

_EDGE = re.compile(rf"(?:\s*+{re.escape(PLACEHOLDER)}\s*+)*+")
_BEHIND = re.compile(rf"(?:\s*+{re.escape(PLACEHOLDER[::-1])}\s*+)*+")
"""Placeholders at the beginning of a text, and of one that is turned around. Nothing is tried twice: rows may be hostile."""
_MARK = re.compile(r"(?:(?<=\s)|^)\(?([A-H])[.)]\s+")
_LETTER = re.compile(r"^\(?([A-H])\)?(?:[.)](?:\s.*)?)?$", re.DOTALL)
_BOX = re.compile(r"^\[\s*{n}(?:\s*,\s*{n}){{3}}\s*\]$".format(n=r"(?:\d+(?:\.\d*)?|\.\d+)"))


class UnusableRow(Exception):
    """The row cannot be taken apart; the text is the reason for the manifest."""


@dataclass(frozen=True)
class Exchange:
    """One question of a row with its answer in words."""

    question: str
    """Without placeholders, options and cue."""
    answer: str
    """The right answer in words: the chosen option's text where the row answers with a letter."""
    options: tuple[str, ...] = ()
    """In the row's order; empty where none are offered."""
    before: str = ""
    """Placeholders in front of the question, as they stand."""
    after: str = ""
    """Placeholders behind it."""

    @property
    def asked(self) -> str:
        """The question with its options as a plain list, so that "which of these" keeps its sense."""
        return f"{self.question}\nChoose from: {'; '.join(self.options)}." if self.options else self.question

    @property
    def is_yes_no(self) -> bool:
        """Whether the right answer is yes or no."""
        return self.answer.strip().removesuffix(".").lower() in ("yes", "no")

    @property
    def is_box(self) -> bool:
        """Whether the right answer is four numbers in square brackets."""
        return is_box(self.answer)


def exchanges_of(row: Row, *, native: str, cues: Sequence[str] = ()) -> tuple[Exchange, ...]:
    """Every question of a row. Raises UnusableRow for plain texts, pictures inside a question and unreadable options."""
    if len(row.turns) < 2 or row.encoding.raw:
        raise UnusableRow("the row is a plain text")
    pairs = zip(row.dialogue[::2], row.dialogue[1::2], strict=True)
    return tuple(_exchange(user.text, gold.text, row.meta, native, cues) for user, gold in pairs)


def source_of(row: Row) -> str:
    """16 hex digits that change with the row's pictures, questions or answers."""
    return digest_of([list(row.images), [[turn.role, turn.text] for turn in row.turns]])[:16]


def is_box(text: str) -> bool:
    """Whether the text is ``[x1, y1, x2, y2]``."""
    return _BOX.match(text.strip()) is not None


def split_options(text: str) -> tuple[str, tuple[str, ...]] | None:
    """The text without its options ``A. … B. …`` (one per line or in a row), and the options; None if there are none."""
    marks = list(_MARK.finditer(text))
    letters = "".join(mark.group(1) for mark in marks)
    first = letters.rfind("A", 0, max(letters.rfind("B"), 0))
    if first < 0:
        return None
    run = [marks[first]]
    for mark in marks[first + 1 :]:
        if mark.group(1) == "ABCDEFGH"[len(run) % 8]:
            run.append(mark)
    ends = [mark.start() for mark in run[1:]]
    last = text[run[-1].end() :].split("\n", 1)
    options = [text[mark.end() : end].strip() for mark, end in zip(run[:-1], ends, strict=True)]
    options.append(last[0].strip())
    rest = last[1].strip() if len(last) > 1 else ""
    stem = "\n".join(part for part in (text[: run[0].start()].rstrip(), rest) if part)
    return (stem, tuple(options)) if all(options) else None


def framed(text: str) -> tuple[str, str, str]:
    """Placeholders with the blanks around them in front of a text, the text, and those behind it."""
    front = _EDGE.match(text)
    start = front.end() if front else 0
    back = _BEHIND.match(text[start:][::-1])
    end = len(text) - (back.end() if back else 0)
    return text[:start], text[start:end], text[end:]


def _exchange(text: str, gold: str, meta: Mapping[str, Any], native: str, cues: Sequence[str]) -> Exchange:
    before, middle, after = framed(text)
    if PLACEHOLDER in middle:
        raise UnusableRow("a picture stands inside the question")
    question = without_cue(middle, cues)
    if not question:
        raise UnusableRow("the question is nothing but a cue")
    if native != "mcq":
        return Exchange(question, gold, (), before, after)
    parts = split_options(question)
    if parts is None:
        raise UnusableRow("no options found in the question")
    stem, options = parts
    choices = meta.get("choices")
    if isinstance(choices, list) and len(choices) == len(options) and all(isinstance(c, str) for c in choices):
        options = tuple(choices)
    letter = _LETTER.match(gold.strip())
    index = ord(letter.group(1)) - ord("A") if letter else len(options)
    if index >= len(options) or not stem:
        raise UnusableRow("the answer is not the letter of an option")
    return Exchange(stem, options[index], options, before, after)
