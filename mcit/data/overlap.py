"""Rows that are the same in two recipes: the same pictures, and the same question or the same place of origin."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from mcit.core.files import sha256_file
from mcit.core.types import Row


def overlapping(forgotten: Sequence[Row], retained: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Pairs of rows that ask the same about the same pictures, or come from the same place of origin with them."""
    by_key: dict[object, list[Row]] = {}
    for row in retained:
        for key in _keys(row):
            by_key.setdefault(key, []).append(row)
    found = []
    for row in forgotten:
        near = [other for key in _keys(row) for other in by_key.get(key, [])]
        twin = next((other for other in near if pictures_of(other) == pictures_of(row)), None)
        if twin is not None:
            found.append((row, twin))
    return found


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
    return tuple(" ".join(turn.text.split()) for turn in row.turns if turn.role == "user")
