"""Wrong boxes for a question whose answer is a box [x1, y1, x2, y2] between 0 and 1."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

Box = tuple[float, float, float, float]
MOST_OVERLAP = 0.3
"""Intersection over union with the right box stays below this."""
_TRIES = 20
_SHRINK = 0.8


def read(text: str) -> Box:
    """The four numbers of a box."""
    x1, y1, x2, y2 = (float(number) for number in re.findall(r"\d+\.?\d*|\.\d+", text))
    return x1, y1, x2, y2


def decimals(text: str) -> int:
    """The most decimals that a number of the box has."""
    return max(len(part) for part in re.findall(r"\d*\.?(\d*)", text.replace(" ", "")) or [""])


def write(box: Box, places: int) -> str:
    """The box as the row writes it."""
    return "[" + ", ".join(f"{value:.{places}f}" for value in box) + "]"


def overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = _area(one) + _area(other) - shared
    return shared / union if union > 0 else 0.0


def wrong_boxes(gold: str, others: Sequence[str], count: int, draw: random.Random) -> tuple[str, ...] | None:
    """`count` different boxes that overlap the right one by less than 0.3, written with as many decimals.

    Boxes of other questions about the picture come first, in a drawn order; then boxes of the right one's size at
    drawn places, made smaller by a fifth after every 20 places that do not fit. None where rounding leaves no room, and
    for a box that is not between 0 and 1, such as one in pixels.
    """
    right, places = read(gold), decimals(gold)
    if not _inside(right):
        return None
    pool = sorted({write(read(other), places) for other in others})
    draw.shuffle(pool)
    found = [box for box in pool if _fits(box, right)][:count]
    width, height = right[2] - right[0], right[3] - right[1]
    for turn in range(_TRIES * 40):
        if len(found) == count:
            return tuple(found)
        if turn and turn % _TRIES == 0:
            width, height = width * _SHRINK, height * _SHRINK
        x, y = draw.random() * (1 - width), draw.random() * (1 - height)
        box = write((x, y, x + width, y + height), places)
        if box not in found and _fits(box, right):
            found.append(box)
    return tuple(found) if len(found) == count else None


def _fits(text: str, right: Box) -> bool:
    box = read(text)
    return _inside(box) and overlap(box, right) < MOST_OVERLAP


def _inside(box: Box) -> bool:
    return 0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
