"""Replace answers by a table, for a share of the rows: renamed classes, or label noise for a study."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from mcit.core.config import Config as BaseConfig
from mcit.core.config import Field, suggestion
from mcit.core.errors import DataError
from mcit.core.types import Row, Turn
from mcit.data.transforms.base import RowTransform


class Relabel(RowTransform):
    """Last answers found in `answers` are replaced; other rows stay as they are."""

    class Config(BaseConfig):
        """The table, and how many of the rows it touches."""

        answers: dict[str, str] = Field(min_length=1)
        """Old answer to new answer."""
        share: float = Field(1.0, gt=0, le=1)
        """Share of the rows that are looked at."""
        style: str | None = None
        """Style of the changed rows; None keeps theirs."""

    def apply(self, rows: Sequence[Row], *, seed: int) -> list[Row]:
        """The rows with new answers; `meta["answer_before"]` keeps the old one.

        Raises DataError for an old answer that no training row has.
        """
        known = {row.answer for row in rows}
        for old in self.config.answers:
            if old not in known:
                what = f"no training row has answer '{old}'"
                raise DataError(what, where="transforms: relabel", fix=suggestion(old, known))
        draw = random.Random(seed).random
        return [self._changed(row) if draw() < self.config.share else row for row in rows]

    def _changed(self, row: Row) -> Row:
        new = self.config.answers.get(row.answer)
        if new is None:
            return row
        return replace(
            row,
            turns=(*row.turns[:-1], Turn("assistant", new)),
            style=row.style if self.config.style is None else self.config.style,
            meta={**row.meta, "answer_before": row.answer},
        )
