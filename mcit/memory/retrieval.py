"""How good a ranking is: precision and recall among its first k places. Pure Python."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence


def precision_at(ranking: Sequence[Hashable], relevant: Collection[Hashable], k: int) -> float:
    """Share of the first k places that hold something relevant; places that a short ranking lacks count as wrong.

    Raises ValueError for k below 1.
    """
    if k < 1:
        raise ValueError("precision of no place")
    return sum(one in relevant for one in ranking[:k]) / k


def recall_at(ranking: Sequence[Hashable], relevant: Collection[Hashable], k: int) -> float:
    """Share of what is relevant that is among the first k places. Raises ValueError where nothing is."""
    if not relevant:
        raise ValueError("recall of nothing")
    return sum(one in relevant for one in ranking[:k]) / len(relevant)
