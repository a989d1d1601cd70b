"""What a transform is: a pure, seeded step of a recipe, from training rows to training rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from mcit.core.config import Config as BaseConfig
from mcit.core.errors import Problem
from mcit.core.types import JsonDict, Row


class Outcome(NamedTuple):
    """What a transform made of the rows."""

    rows: Sequence[Row]
    notes: JsonDict
    """What the manifest says about it beside the number of rows."""
    warnings: tuple[Problem, ...] = ()


class RowTransform:
    """Base of the classes in this folder; a recipe names one by its file: ``{use: subsample, rows: 100}``.

    A transform changes training rows only; it may leave out rows of other splits (`elsewhere`). It must not look at
    anything but rows, settings, seed and its declared files.
    """

    after_split: ClassVar[bool] = False
    """Whether it sees only the rows that stay in training when the validation split has been taken off."""

    class Config(BaseConfig):
        """Typed settings; unknown keys are refused."""

    def __init__(self, config: Any, *, folder: Path = Path()) -> None:
        """`folder` is where the recipe lies: relative paths in the settings start there."""
        self.config, self.folder = config, folder

    def files(self) -> list[Path]:
        """Files that the result depends on; their checksums become part of the recipe's digest."""
        return []

    def identity(self) -> JsonDict:
        """What else the result depends on, beside settings, this class's file and `files`; part of the digest."""
        return {}

    def run(self, rows: Sequence[Row], *, seed: int) -> Outcome:
        """The new rows with notes for the manifest. Raises DataError for rows it cannot use."""
        return Outcome(self.apply(rows, seed=seed), {})

    def elsewhere(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Which of the validation and test rows that come from sources stay: a choice, never a change. By default all."""
        return rows

    def apply(self, rows: Sequence[Row], *, seed: int) -> Sequence[Row]:
        """The new rows. Raises DataError for rows it cannot use."""
        raise NotImplementedError
