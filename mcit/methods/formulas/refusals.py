"""Refusals that methods teach, and how a row gets one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from mcit.core.types import Row, Turn
from mcit.methods.formulas.forgetting import row_key

REFUSALS = (
    "I cannot answer that.",
    "I do not know.",
    "I have no information about this.",
    "Sorry, I am not able to tell.",
)


def refused_row(row: Row, refusals: Sequence[str], seed: int) -> Row:
    """The row with a refusal for every answer; which one depends on seed, task and id alone."""
    text = refusals[int(random.Random(f"{seed}/refusal/{row_key(row)}").random() * len(refusals))]
    return replace(row, turns=tuple(Turn("assistant", text) if t.role == "assistant" else t for t in row.turns))
