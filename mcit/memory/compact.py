"""Compact memory: one running summary of the dialogue, and an overview of finished ones. Pure Python.

HEMA (arXiv:2504.16754): ``S_t = summarise(S_{t-1}, turn_t)``, and a summary of summaries every 100 turns. The running summary
begins anew with each block of turns, so a mistake in it ends with the block.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

Summarise = Callable[[str, str], str]
"""A summary so far (or nothing) and what comes after it, to a summary of both."""

WORDS = 60
"""Words of a summary at most."""
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_WORD = re.compile(r"[^\W_]+")


class Compact:
    """Two levels of summary."""

    def __init__(self, summarise: Summarise, *, block: int, running: str = "", overview: str = "") -> None:
        self._summarise, self._block = summarise, block
        self.running, self.overview = running, overview
        """Of the present block, and of all finished ones."""

    def add(self, turn: int, text: str) -> None:
        """What was said in the turn of this number, from 0."""
        self.running = self._summarise(self.running, text)
        if (turn + 1) % self._block == 0:
            self.overview = self._summarise(self.overview, self.running)
            self.running = ""

    @property
    def parts(self) -> tuple[str, ...]:
        """Overview and running summary, as far as there are any."""
        return tuple(part for part in (self.overview, self.running) if part)


def extract(previous: str, text: str, *, words: int = WORDS) -> str:
    """Whole sentences of both within so many words, in their order; a summary that needs no model.

    The sentence goes that has the fewest words which no other one has, per word; of equal ones the earlier. Questions go before
    statements. A single longer sentence is cut.
    """
    sentences = list(dict.fromkeys(part.strip() for part in _SENTENCE.split(f"{previous}\n{text}") if part.strip()))
    while len(sentences) > 1 and sum(len(part.split()) for part in sentences) > words:
        bags = [set(_WORD.findall(part.lower())) for part in sentences]
        seen = Counter(word for bag in bags for word in bag)
        worth = [
            (not part.endswith("?"), sum(seen[word] == 1 for word in bag) / max(1, len(bag)))
            for part, bag in zip(sentences, bags, strict=True)
        ]
        sentences.pop(worth.index(min(worth)))
    return cut(" ".join(sentences), words)


def cut(text: str, words: int) -> str:
    """The first so many words of a text."""
    parts = text.split()
    return text if len(parts) <= words else " ".join(parts[:words])
