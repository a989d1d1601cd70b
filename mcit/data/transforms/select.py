"""Keep or leave out the rows of some classes, in every split: what a forget stage forgets, and what it retains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from pydantic import field_validator, model_validator

from mcit.core.config import Config as BaseConfig
from mcit.core.config import Field, suggestion
from mcit.core.errors import DataError
from mcit.core.types import Row
from mcit.data.rowset import pick
from mcit.data.transforms.base import RowTransform


class Select(RowTransform):
    """Rows by their answer, style or a meta value."""

    class Config(BaseConfig):
        """Exactly one of `keep` and `drop`."""

        by: str = "answer"
        """``answer``, ``style`` or ``meta.<key>``."""
        keep: list[str] = Field([], max_length=10_000)
        """Values whose rows stay; all others go."""
        drop: list[str] = Field([], max_length=10_000)
        """Values whose rows go."""

        @field_validator("by")
        @classmethod
        def _known(cls, value: str) -> str:
            if value not in ("answer", "style") and not (value.startswith("meta.") and value != "meta."):
                raise ValueError("use answer, style or meta.<key>")
            return value

        @model_validator(mode="after")
        def _one_of_two(self) -> Self:
            if bool(self.keep) == bool(self.drop):
                raise ValueError("give either keep or drop")
            return self

    def apply(self, rows: Sequence[Row], *, seed: int) -> Sequence[Row]:
        """The chosen rows in their old order.

        Raises DataError for a row without the meta key, and for a listed value that no training row has.
        """
        values = {self._value(row) for row in rows}
        for value in self.config.keep or self.config.drop:
            if value not in values:
                what = f"no training row has {self.config.by} '{value}'"
                raise DataError(what, where="transforms: select", fix=suggestion(value, values))
        return self.elsewhere(rows)

    def elsewhere(self, rows: Sequence[Row]) -> Sequence[Row]:
        """The same choice on validation and test rows. Raises DataError for a row without the meta key."""
        listed, keeping = set(self.config.keep or self.config.drop), bool(self.config.keep)
        return pick(rows, [place for place, row in enumerate(rows) if (self._value(row) in listed) == keeping])

    def _value(self, row: Row) -> str:
        if not self.config.by.startswith("meta."):
            return row.answer if self.config.by == "answer" else row.style
        key = self.config.by.removeprefix("meta.")
        if key not in row.meta:
            raise DataError(f"the row has no meta '{key}' to select by", where=row.where, fix="change select.by")
        return str(row.meta[key])
