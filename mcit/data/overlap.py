"""Rows that are the same in two recipes: the same pictures, and the same question or the same place of origin."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

from mcit.core.files import sha256_file
from mcit.core.types import Row


def overlapping(forgotten: Sequence[Row], retained: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Pairs of rows that ask the same about the same pictures, or come from the same place of origin with them."""
    twins = Twins(retained)
    return [(row, other) for row in forgotten if (other := next(twins.of(row), None)) is not None]


class Twins:
    """Rows by what makes others the same."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._by_key: dict[object, list[Row]] = {}
        for row in rows:
            for key in _keys(row):
                self._by_key.setdefault(key, []).append(row)

    def of(self, row: Row) -> Iterator[Row]:
        """Those that are the same as a row; one that asks the same and is of the same place comes twice."""
        near = (other for key in _keys(row) for other in self._by_key.get(key, ()))
        return (other for other in near if pictures_of(other) == pictures_of(row))


def _keys(row: Row) -> Iterable[object]:
    """What rows must have in common beside their pictures; a place of origin is relative to a recipe and says little alone."""
    yield "asks", asked(row) or tuple(" ".join(t.text.split()) for t in row.turns)
    if row.images:
        yield "where", row.where


def pictures_of(row: Row) -> tuple[str, ...]:
    """Checksums of a row's pictures."""
    return tuple(_picture(Path(row.root) / name) for name in row.images)


@cache
def _picture(path: Path) -> str:
    return sha256_file(path)


def asked(row: Row) -> tuple[str, ...]:
    """What a row asks: its user turns, whatever the white space."""
    return _said(row, "user")


def answers_of(row: Row) -> tuple[str, ...]:
    """What a row answers, whatever the white space."""
    return _said(row, "assistant")


def _said(row: Row, role: str) -> tuple[str, ...]:
    return tuple(" ".join(turn.text.split()) for turn in row.turns if turn.role == role)
