"""A memory of a dialogue outside of the weights: summaries, and exchanges found again by their meaning.

HEMA (arXiv:2504.16754): a compact and a vector memory beside a model that stays as it is. Nothing here needs torch.
Shapes: N entries, D dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mcit.core.ageing import Favours, age_weight, lightest, recall_bonus
from mcit.core.config import Config, Field
from mcit.memory.compact import Compact, Summarise
from mcit.memory.vectors import Vectors


class Embedder(Protocol):
    """Texts to vectors; see `mcit.memory.embed`."""

    @property
    def identity(self) -> str:
        """Equal where equal texts have equal vectors: kind, and checksum of the weights."""

    @property
    def dimension(self) -> int:
        """Numbers of a vector."""

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(N, D), not yet of length 1. Raises DataError for a text that cannot be encoded."""


class MemoryConfig(Config):
    """How a memory remembers and forgets; kept in its folder."""

    parts: Literal["both", "compact", "vector"] = "both"
    """Summaries, exchanges found by their meaning, or both."""
    hits: int = Field(5, ge=1)
    """Exchanges that are recalled for a question."""
    piece: int = Field(120, ge=8)
    """Words of a question or answer that make one entry; longer ones become several."""
    block: int = Field(100, ge=1)
    """Turns after which the running summary goes into the overview."""
    prune_every: int = Field(100, ge=1)
    """Turns between two prunings, which is also what counts as recalled lately."""
    prune_share: float = Field(0.005, ge=0, lt=1)
    """Share of the entries that a pruning drops, rounded down."""
    capacity: int | None = Field(None, ge=1)
    """Most entries; what is beyond is dropped after each turn. None is no limit."""
    tau: float = Field(500.0, gt=0)
    """Turns in which an entry's weight falls to 1/e."""
    beta: float = Field(0.5, ge=0)
    """Added to the weight of what was recalled lately, or with ``favours: unrecalled`` to that of the rest."""
    favours: Favours = "recalled"
    """``recalled`` is what the paper says, ``unrecalled`` what its formula does."""


@dataclass
class Entry:
    """An exchange, or a piece of a long one."""

    turn: int
    question: str
    answer: str
    recalled: int | None = None
    """The turn that it was recalled for last."""

    @property
    def text(self) -> str:
        """What its vector is of."""
        return f"{self.question}\n{self.answer}"


@dataclass(frozen=True)
class Hit:
    """An entry that fits a question."""

    place: int
    cosine: float
    turn: int
    question: str
    answer: str


@dataclass(frozen=True)
class Recalled:
    """What a memory has to say to a question."""

    summary: tuple[str, ...] = ()
    hits: tuple[Hit, ...] = ()
    """Best first."""


class Memory:
    """Turns go in one after the other; recalling changes nothing by itself."""

    def __init__(self, embed: Embedder, summarise: Summarise, config: MemoryConfig | None = None) -> None:
        self.config = config or MemoryConfig()
        self.embed = embed
        self.compact = Compact(summarise, block=self.config.block)
        self.vectors = Vectors(embed.dimension)
        self.entries: list[Entry] = []
        self.turns = 0

    def recall(self, question: str) -> Recalled:
        """Summaries and the entries nearest to a question."""
        parts = self.config.parts
        summary = self.compact.parts if parts != "vector" else ()
        if parts == "compact" or not self.entries:
            return Recalled(summary)
        found = self.vectors.search(self.embed([question])[0], self.config.hits)
        picked = [(place, cosine, self.entries[place]) for place, cosine in found]
        return Recalled(summary, tuple(Hit(p, c, e.turn, e.question, e.answer) for p, c, e in picked))

    def remember(self, question: str, answer: str, *, recalled: Sequence[int] = ()) -> None:
        """The exchange of the next turn, and the places of the entries that were shown with its question.

        Raises DataError for a text that cannot be embedded; nothing is then remembered of the turn.
        """
        new = [Entry(self.turns, *pair) for pair in pieces(question, answer, self.config.piece)]
        if self.config.parts != "compact":
            self.vectors.add(self.embed([entry.text for entry in new]))
            self.entries += new
        if self.config.parts != "vector":
            self.compact.add(self.turns, f"{question}\n{answer}")
        for place in recalled:
            self.entries[place].recalled = self.turns
        self.turns += 1
        if self.turns % self.config.prune_every == 0:
            self._forget(int(self.config.prune_share * len(self.entries)))
        if self.config.capacity is not None:
            self._forget(len(self.entries) - self.config.capacity)

    def reembed(self) -> None:
        """Vectors of all entries by this memory's encoder, in place of those that another made."""
        self.vectors = Vectors(self.embed.dimension)
        for start in range(0, len(self.entries), 32):  # speed: texts at a time
            self.vectors.add(self.embed([entry.text for entry in self.entries[start : start + 32]]))

    def weight(self, entry: Entry) -> float:
        """What decides whether an entry is dropped; the lightest go first."""
        c = self.config
        recent = entry.recalled is not None and self.turns - entry.recalled <= c.prune_every
        return age_weight(self.turns - entry.turn, tau=c.tau) + recall_bonus(recent, beta=c.beta, favours=c.favours)

    def _forget(self, count: int) -> None:
        if count > 0:
            gone = lightest([self.weight(entry) for entry in self.entries], count)
            self.vectors.drop(gone)
            out = set(gone)
            self.entries = [entry for place, entry in enumerate(self.entries) if place not in out]

    def state(self) -> dict[str, Any]:
        """Everything but entries and vectors."""
        return {"turns": self.turns, "running": self.compact.running, "overview": self.compact.overview}


def pieces(question: str, answer: str, words: int) -> list[tuple[str, str]]:
    """An exchange as pairs of at most so many words each; where one side is longer, the other's last piece is repeated."""
    asked, said = _cut_up(question, words), _cut_up(answer, words)
    count = max(len(asked), len(said))
    return [(asked[min(k, len(asked) - 1)], said[min(k, len(said) - 1)]) for k in range(count)]


def _cut_up(text: str, words: int) -> list[str]:
    parts = text.split()
    if len(parts) <= words:
        return [text]
    return [" ".join(parts[start : start + words]) for start in range(0, len(parts), words)]
