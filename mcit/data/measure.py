"""What rows are to a model: tokens by answer style, the longest row, rows that it refuses. A sample and the longest rows."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from mcit.core.errors import McitError, Problem
from mcit.core.types import Row
from mcit.data.encode import IGNORE, Encoder
from mcit.data.rowset import longest

SAMPLED, LONGEST = 200, 20
"""Rows of a split that are encoded: drawn at random, and the longest ones beside them."""


@dataclass
class Measured:
    """Of the encoded rows of a split."""

    rows: int = 0
    longest: int = 0
    """Positions of the longest row, image positions included."""
    supervised: dict[str, float] = field(default_factory=dict)
    """Mean supervised tokens of a row, by answer style; of the rows drawn at random."""
    problems: list[Problem] = field(default_factory=list)
    """Rows that cannot be encoded: longer than the model's context, or nothing in them is supervised."""


def measure(rows: Sequence[Row], encoder: Encoder, *, sampled: int = SAMPLED) -> Measured:
    """Encode a seeded sample and the longest rows, pictures included."""
    count = min(sampled, len(rows))
    drawn = [rows[place] for place in random.Random(0).sample(range(len(rows)), count)]
    known = {row.where for row in drawn}
    beside = [row for row in longest(rows, LONGEST) if row.where not in known]
    found = Measured()
    tokens: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate([*drawn, *beside]):
        try:
            sample = encoder.encode(row)
        except McitError as error:
            found.problems += [p for p in error.problems if p not in found.problems]
            continue
        found.rows += 1
        found.longest = max(found.longest, len(sample.input_ids_T))
        if number < count:
            tokens[row.style].append(int((sample.labels_T != IGNORE).sum()))
    found.supervised = {style: sum(of) / len(of) for style, of in sorted(tokens.items())}
    return found
