"""How many rows get which style: X percent of the rows, split equally over the four foreign styles."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from math import floor

from mcit.core.seeds import seed_for


def quota(total: int, percent: float) -> int:
    """Rows (or questions) per foreign style: floor(total · percent / 400), in exact arithmetic."""
    return floor(total * Fraction(str(percent)) / 400)


def assign(
    sizes: Sequence[int], styles: Sequence[str], most: int, *, seed: int, eligible: Callable[[int, str], bool]
) -> dict[str, list[int]]:
    """Disjoint choices of row numbers for each style, in the shuffled order.

    `sizes` says how much of the quota `most` a row takes: 1 when rows are counted, its questions when those are. One
    seeded shuffle serves all styles; each takes the first eligible rows that no earlier style has, and is never
    filled up from elsewhere.
    """
    order = list(range(len(sizes)))
    random.Random(seed_for(seed, "asd", "order")).shuffle(order)
    used: set[int] = set()
    chosen: dict[str, list[int]] = {}
    for style in styles:
        taken, full = chosen.setdefault(style, []), 0
        for index in order:
            if full >= most:
                break
            if index in used or full + sizes[index] > most or not eligible(index, style):
                continue
            taken.append(index)
            used.add(index)
            full += sizes[index]
    return chosen
