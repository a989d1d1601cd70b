"""What a guard does while an answer is written: forbidden phrases by a trie of tokens, and by likeness of meaning.

Needs torch alone: the export of a guard carries this file. After GUARD ("Generation-time LLM Unlearning via Adaptive
Restriction and Detection", arXiv:2505.13312), whose equations we could not see: thresholds, penalties and windows are ours.
Shapes: B rows or beams, V vocabulary, P phrases, D width of embeddings.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

Encode = Callable[[str], Sequence[int]]


class Trie:
    """Token sequences that must not be completed."""

    def __init__(self, sequences: Iterable[Sequence[int]]) -> None:
        self._root: dict[int, Any] = {}
        self._longest = 0
        for sequence in sequences:
            node = self._root
            for token in sequence:
                node = node.setdefault(int(token), {})
            if sequence:
                node[-1] = True
                self._longest = max(self._longest, len(sequence))

    def completing(self, written: Sequence[int]) -> list[int]:
        """Tokens that would complete a sequence which the end of `written` has begun; first tokens of longer ones are free."""
        found = set()
        for start in range(max(0, len(written) - self._longest + 1), len(written) + 1):
            node: dict[int, Any] | None = self._root
            for token in written[start:]:
                node = node.get(int(token)) if node else None
            found |= {token for token, below in (node or {}).items() if token != -1 and -1 in below}
        return sorted(found)


def surface_forms(phrase: str, encode: Encode) -> list[list[int]]:
    """Token sequences of a phrase as it may stand in a text: with a blank before it, capitalised, in lower case."""
    words = {phrase, phrase.lower(), phrase[:1].upper() + phrase[1:], phrase.title(), phrase.upper()}
    texts = sorted({text for word in words for text in (word, f" {word}")})
    return [list(ids) for text in texts if (ids := encode(text))]


def soft_penalty(similarity: float, *, delta: float, kappa: float, infinite: bool = False) -> float:
    """``-kappa (sim - delta) / (1 - delta)`` from `delta` on, or minus infinity; 0 below."""
    if similarity < delta:
        return 0.0
    return float("-inf") if infinite else -kappa * (similarity - delta) / max(1e-9, 1 - delta)


class Restriction:
    """The rule for scores of next tokens, for rows that are guarded."""

    def __init__(
        self,
        phrases: Sequence[str],
        *,
        encode: Encode,
        decode: Callable[[Sequence[int]], str],
        embeddings: Tensor,
        hard: float,
        delta: float,
        kappa: float,
        infinite: bool,
        window: int,
    ) -> None:
        """`embeddings` (V, D); completing a phrase costs `hard`; up to `window` words more or fewer than a phrase are compared
        with it."""
        self.phrases = list(phrases)
        self.trie = Trie(ids for phrase in phrases for ids in surface_forms(phrase, encode))
        self._encode, self._decode, self._table = encode, decode, embeddings
        self._phrase_PD = torch.stack([self._embed(phrase) for phrase in phrases]) if phrases else embeddings[:0]
        self._lengths = [len(phrase.split()) for phrase in phrases]
        self._hard, self._delta, self._kappa, self._infinite = hard, delta, kappa, infinite
        self._window = window

    def scores(self, scores_BV: Tensor, written: Sequence[Sequence[int]]) -> Tensor:
        """Scores with forbidden completions and beams that end like a phrase made worse."""
        scores_BV = scores_BV.clone()
        for k, ids in enumerate(written):
            blocked = self.trie.completing(ids)
            if blocked:
                scores_BV[k, blocked] -= self._hard
            if ids and self.phrases and self._kappa:
                scores_BV[k] += self._meaning(ids)
        return scores_BV

    def _meaning(self, ids: Sequence[int]) -> float:
        """The penalty of what the last token made of the last words; it is paid once, when the words change."""
        now, before = (self.likeness(self._decode(part)) for part in (ids, ids[:-1]))
        return soft_penalty(now, delta=self._delta, kappa=self._kappa, infinite=self._infinite) if now > before else 0.0

    def likeness(self, text: str) -> float:
        """Largest cosine of the last words of a text with a phrase of about their number; -1 for none."""
        words, best = text.split(), [-1.0]
        for k, length in enumerate(self._lengths):
            spans = {min(len(words), n) for n in range(length - self._window, length + self._window + 1) if n > 0} - {0}
            ends = [self._embed(" ".join(words[-n:])) for n in spans]
            best += (
                [max(float(torch.cosine_similarity(end, self._phrase_PD[k], dim=0)) for end in ends)] if ends else []
            )
        return max(best)

    def _embed(self, text: str) -> Tensor:
        ids = list(self._encode(f" {text}"))
        return self._table[ids].float().mean(0) if ids else torch.zeros_like(self._table[0].float())

    def says(self, text: str) -> bool:
        """Whether a finished text holds a phrase, whatever the case."""
        plain = f" {_plain(text)} "
        return any(_plain(phrase) and f" {_plain(phrase)} " in plain for phrase in self.phrases)


def _plain(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())
