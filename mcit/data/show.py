"""Rows for people: pieces of text, each with whether it is supervised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mcit.core.types import Row

if TYPE_CHECKING:
    from mcit.data.encode import Encoder


@dataclass(frozen=True)
class Piece:
    """A stretch of a row's text."""

    text: str
    supervised: bool


@dataclass(frozen=True)
class ShownRow:
    """A row as it is trained."""

    row: Row
    pieces: tuple[Piece, ...]
    tokens: int | None = None
    """Length of the encoded row; None without a model."""
    supervised_tokens: int | None = None


def show_rows(rows: Sequence[Row], *, encoder: Encoder | None = None) -> list[ShownRow]:
    """Rows with what is supervised: to the token with an encoder, by turns without one.

    Raises DataError for a row the encoder refuses.
    """
    return [_encoded(row, encoder) if encoder else _plain(row) for row in rows]


def _plain(row: Row) -> ShownRow:
    pieces = []
    for turn in row.turns:
        pieces.append(Piece(f"{turn.role}: ", False))
        pieces.append(Piece(turn.text, turn.role == "assistant"))
        pieces.append(Piece("\n", False))
    return ShownRow(row, tuple(pieces[:-1]))


def _encoded(row: Row, encoder: Encoder) -> ShownRow:
    sample = encoder.encode(row)
    pieces = tuple(Piece(text, supervised) for text, supervised in encoder.supervised_text(sample))
    count = int((sample.labels_T >= 0).sum())
    return ShownRow(row, pieces, len(sample.labels_T), count)
