"""Leave out single training rows, named by where they came from: what `mcit gold` does to rows that are to be forgotten."""

from __future__ import annotations

from collections.abc import Sequence

from mcit.core.config import Config as BaseConfig
from mcit.core.config import Field
from mcit.core.errors import DataError
from mcit.core.types import Row
from mcit.data.rowset import pick
from mcit.data.transforms.base import RowTransform


class LeaveOut(RowTransform):
    """Training rows by ``file:line:id``; validation and test rows stay as they are, they measure what was left out."""

    after_split = True

    class Config(BaseConfig):
        """Which rows."""

        rows: list[str] = Field(min_length=1)
        """``file:line:id`` of each, as messages name it."""

    def apply(self, rows: Sequence[Row], *, seed: int) -> Sequence[Row]:
        """The others in their old order. Raises DataError for a row that is not there."""
        listed = set(self.config.rows)
        absent = listed - {row.where for row in rows}
        if absent:
            what = f"no training row is {sorted(absent)[0]}"
            raise DataError(what, where="transforms: leave_out", fix="name rows as messages do: file:line:id")
        return pick(rows, [place for place, row in enumerate(rows) if row.where not in listed])
