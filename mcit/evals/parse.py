"""Reading letters and boxes out of answers. Boxes are (x1, y1, x2, y2), usually as shares of the picture's side."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

Box = tuple[float, float, float, float]
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_LONE_LETTER = re.compile(r"^\(?([A-Za-z])\)?[.):]?$")
_LED_BY_LETTER = re.compile(r"^(?:\(([A-Z])\)|([A-Z])[.):])\s+\S")
_SAID_LETTER = re.compile(r"\b(?:[Aa]nswer|[Oo]ption|[Cc]hoice)(?:\s+is)?\s*:?\s*\(?([A-Z])\)?(?=[\s.,;:)]|$)")
_LISTED = re.compile(r"(?:^|\s)\(?([A-Z])[.):]\s")
_DEFAULT_LETTERS = "ABCDE"


def stated_letters(gold: Mapping[str, Any]) -> str:
    """Letters a row states: one per entry of its ``choices``, else those its ``question`` lists; empty for fewer than two."""
    choices: Sequence[Any] = gold.get("choices") or ()
    if choices:
        return string.ascii_uppercase[: len(choices)]
    listed = _LISTED.findall(str(gold.get("question", "")))
    letters = ""
    for letter in listed:
        if letter == string.ascii_uppercase[len(letters) : len(letters) + 1]:
            letters += letter
    return letters if len(letters) > 1 else ""


def offered_letters(gold: Mapping[str, Any]) -> str:
    """Letters a row offers: those that it states, else A to E."""
    return stated_letters(gold) or _DEFAULT_LETTERS


def read_letter(text: str, letters: str) -> str | None:
    """The one offered letter that an answer names: ``B``, ``b``, ``B.``, ``(b)``, ``B. iron``, ``the answer is B``."""
    text = text.strip()
    found = _LONE_LETTER.match(text) or _LED_BY_LETTER.match(text)
    said = [next(g for g in found.groups() if g).upper()] if found else sorted(set(_SAID_LETTER.findall(text)))
    return said[0] if len(said) == 1 and said[0] in letters else None


def read_box(text: str) -> Box | None:
    """Four numbers, no more and no fewer, wherever they stand in the text."""
    numbers = _NUMBER.findall(text)
    if len(numbers) != 4:
        return None
    x1, y1, x2, y2 = map(float, numbers)
    return (x1, y1, x2, y2)


def iou(a: Box, b: Box) -> float:
    """Area of the intersection over area of the union; 0 where a box has no area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    inside = max(0.0, width) * max(0.0, height)
    union = _area(a) + _area(b) - inside
    return inside / union if inside > 0 else 0.0


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])
