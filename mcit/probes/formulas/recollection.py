"""Recognition, recall and retention of single rows (arXiv:2303.17557 and its released code). Pure Python."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_WORD = re.compile(r"[a-z0-9]+")


def recognised(seen: Sequence[float], foil: Sequence[float]) -> list[bool]:
    """Two-alternative choice per pair: the seen row has the lower mean loss, strictly; ties are wrong.

    Raises ValueError for lists of different lengths.
    """
    return [a < b for a, b in zip(seen, foil, strict=True)]


def cue_length(tokens: int) -> int:
    """Tokens of a text that are given when the rest is to be recalled."""
    return tokens // 2


def words(text: str) -> list[str]:
    """Words as ROUGE counts them, without stemming."""
    return _WORD.findall(text.lower())


def rouge_1(reference: str, text: str) -> float:
    """F of common words."""
    a, b = words(reference), words(text)
    return _f(sum((Counter(a) & Counter(b)).values()), len(a), len(b))


def rouge_l(reference: str, text: str) -> float:
    """F of the longest common subsequence of words."""
    a, b = words(reference), words(text)
    row = [0] * (len(b) + 1)
    for word in a:
        before = row
        row = [0]
        for k, other in enumerate(b):
            row.append(before[k] + 1 if word == other else max(before[k + 1], row[k]))
    return _f(row[-1], len(a), len(b))


def _f(common: int, a: int, b: int) -> float:
    return 2 * common / (a + b) if a + b else 0.0


def retention_steps() -> list[int]:
    """The paper's 30 points after the study: 1-10, 20-100 by 10, 1000-10,000 by 1000, 100,000."""
    return [*range(1, 11), *range(20, 101, 10), *range(1000, 10001, 1000), 100_000]


def is_power_of_ten(step: int) -> bool:
    """1, 10, 100, …"""
    while step > 9 and step % 10 == 0:
        step //= 10
    return step == 1
