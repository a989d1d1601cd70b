"""What a transform is: a pure, seeded step of a recipe, from training rows to training rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mcit.core.config import Config as BaseConfig
from mcit.core.types import Row


class RowTransform:
    """Base of the classes in this folder; a recipe names one by its file: ``{use: subsample, rows: 100}``.

    A transform sees training rows only. It must not look at anything but rows, settings, seed and its declared files.
    """

    class Config(BaseConfig):
        """Typed settings; unknown keys are refused."""

    def __init__(self, config: Any, *, folder: Path = Path()) -> None:
        """`folder` is where the recipe lies: relative paths in the settings start there."""
        self.config, self.folder = config, folder

    def files(self) -> list[Path]:
        """Files that the result depends on; their checksums become part of the recipe's digest."""
        return []

    def apply(self, rows: Sequence[Row], *, seed: int) -> list[Row]:
        """The new rows. Raises DataError for rows it cannot use."""
        raise NotImplementedError
