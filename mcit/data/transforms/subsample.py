"""Keep a seeded choice of rows, in their old order."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Self

import numpy as np
from pydantic import model_validator

from mcit.core.config import Config as BaseConfig
from mcit.core.config import Field
from mcit.core.types import Row
from mcit.data.rowset import pick
from mcit.data.transforms.base import RowTransform


class Subsample(RowTransform):
    """A number of rows, or a share of them; with ``by: style`` from each style alike."""

    class Config(BaseConfig):
        """Exactly one of `rows` and `share`."""

        rows: int | None = Field(None, ge=1)
        """Number of rows that stay."""
        share: float | None = Field(None, gt=0, le=1)
        """Share of the rows that stay."""
        by_style: bool = False
        """Apply the number or share to every style separately."""

        @model_validator(mode="after")
        def _one_of_two(self) -> Self:
            if (self.rows is None) == (self.share is None):
                raise ValueError("give either rows or share")
            return self

    def apply(self, rows: Sequence[Row], *, seed: int) -> Sequence[Row]:
        """Rows with the smallest draws; each row's draw depends on the seed and its place alone."""
        draw = random.Random(seed).random
        draws = np.fromiter((draw() for _ in range(len(rows))), np.float64, len(rows))
        styles = np.array([row.style for row in rows] if self.config.by_style else [""] * len(rows))
        kept = []
        for style in np.unique(styles):
            group = np.flatnonzero(styles == style)
            count = self.config.rows if self.config.rows is not None else max(1, round(self.config.share * len(group)))
            kept.append(group[np.argsort(draws[group], kind="stable")[:count]])
        return pick(rows, np.sort(np.concatenate(kept)) if kept else [])
