"""Keep the first of rows that ask the same about the same pictures."""

from __future__ import annotations

from collections.abc import Sequence

from mcit.core.config import Config as BaseConfig
from mcit.core.types import Row
from mcit.data.rowset import pick
from mcit.data.transforms.base import RowTransform


class Dedupe(RowTransform):
    """Rows are equal when image paths and questions are; with `answers` also the answers must be."""

    class Config(BaseConfig):
        """What counts as equal."""

        answers: bool = True
        """Compare answers too: rows that differ in their answer alone stay."""

    def apply(self, rows: Sequence[Row], *, seed: int) -> Sequence[Row]:
        """The rows without later repetitions."""
        seen: set[tuple[object, ...]] = set()
        kept = []
        for place, row in enumerate(rows):
            turns = row.turns if self.config.answers else tuple(t for t in row.turns if t.role == "user")
            key = (row.root, row.images, tuple((t.role, " ".join(t.text.split())) for t in turns))
            if key not in seen:
                seen.add(key)
                kept.append(place)
        return pick(rows, kept)
