"""Answer style diversification: X percent of a task's training rows rewritten in the styles of other tasks.

Chen et al., "SEFE", ICML 2025, arXiv:2505.02486. Each of the four styles that are not the task's own gets
floor(N · X / 400) of the N training rows; rows are replaced, not added. The validation split stays native like the test
split, so the transform runs after it is taken off.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from mcit.core.config import Config as BaseConfig
from mcit.core.config import Field, suggestion
from mcit.core.errors import Problem
from mcit.core.files import sha256_file
from mcit.core.types import JsonDict, Row
from mcit.data.asd import diversify as code
from mcit.data.asd.answers import Answers, load_answers
from mcit.data.asd.cues import LIMITS
from mcit.data.asd.diversify import ALL_CELLS, Choice, choose, diversify
from mcit.data.transforms.base import Outcome, RowTransform

Style = Literal["yn", "mcq", "short", "brief", "detail"]
Limits = dict[Literal["brief", "detail"], tuple[int, int]]


class Asd(RowTransform):
    """Rows keep their ids, pictures and order; ``meta["asd"]`` says what became of a converted one."""

    after_split: ClassVar[bool] = True

    class Config(BaseConfig):
        """Which share, which native style, and where the other styles' content comes from."""

        percent: float = 20
        """X: rows that leave the native style, in percent of the training rows."""
        native: Style | None = None
        """The task's own style; by default it follows from the rows' styles."""
        seed: int = 0
        """Seed of the choice of rows."""
        unit: Literal["row", "question"] = "row"
        """What the quota counts; a row is always converted with all its questions."""
        answers: str | None = None
        """File of a model's answers for cells without a rule, written by scripts/asd_generate.py."""
        cells: str = "auto"
        """Rules: auto, none, choices, classes, boxes, or those of a bundled task."""
        within: str = ""
        """Key of the rows' meta: wrong class names come from the same group first (the harder variant)."""
        cues: tuple[str, ...] = ()
        """Further format cues that native questions end with."""
        limits: Limits = Field(default=LIMITS)
        """Fewest and most words of a model's explanations."""

        @field_validator("percent")
        @classmethod
        def _some_stay(cls, value: float) -> float:
            if not 0 <= value <= 100:
                raise ValueError("a percentage from 0 to below 100 is wanted")
            if value == 100:
                raise ValueError("100 percent leaves no row in the native style; choose less")
            return value

        @field_validator("cells")
        @classmethod
        def _known_cells(cls, value: str) -> str:
            if value != "auto" and value not in ALL_CELLS:
                raise ValueError(f"there are no such cells; {suggestion(value, ['auto', *ALL_CELLS])}")
            return value

        @field_validator("limits")
        @classmethod
        def _ordered(cls, value: Limits) -> Limits:
            if any(not 1 <= low <= high for low, high in value.values()):
                raise ValueError("give the fewest words, then the most: [8, 45]")
            return {**LIMITS, **value}

    def choice(self, rows: Sequence[Row]) -> Choice:
        """Which rows get which style. Raises DataError for rows without a native style or diversified already."""
        at = self.config
        return choose(
            rows,
            percent=at.percent,
            seed=at.seed,
            native=at.native,
            unit=at.unit,
            cells=at.cells,
            within=at.within,
            cues=at.cues,
        )

    def run(self, rows: Sequence[Row], *, seed: int) -> Outcome:
        """Converted rows and the account of counts, shortfalls and answers.

        The seed of the recipe's step is not used: the one in the settings is, so that a row's trace tells all.
        """
        at = self.config
        if at.percent == 0:
            return Outcome(rows, {"percent": 0})
        rows = list(rows)  # each is looked at many times
        made, account = diversify(
            rows, self.choice(rows), seed=at.seed, unit=at.unit, answers=self._answers(), limits=at.limits
        )
        return Outcome(made, {"percent": at.percent, **account}, _shortfalls(account))

    def apply(self, rows: Sequence[Row], *, seed: int) -> Sequence[Row]:
        """The rows of `run`."""
        return self.run(rows, seed=seed).rows

    def identity(self) -> JsonDict:
        """The code that rows depend on beside this file, and the content of the answers without their times."""
        folder = Path(code.__file__).parent
        answers = self._answers()
        return {
            "modules": {path.name: sha256_file(path) for path in sorted(folder.glob("*.py"))},
            "answers": answers.digest if answers else "",
        }

    def answers_path(self) -> Path | None:
        """The file of answers named in the settings."""
        return None if self.config.answers is None else self.folder / self.config.answers

    def _answers(self) -> Answers | None:
        path = self.answers_path()
        return None if path is None else load_answers(path)


def _shortfalls(account: JsonDict) -> tuple[Problem, ...]:
    """Styles that got fewer rows than their quota, and why."""
    fix = "see docs/asd.md: rules cover some styles, scripts/asd_generate.py asks a model for the others"
    return tuple(
        Problem(
            "asd",
            f"style {style} has {item['short_by']} {account['unit']}(s) less than its quota of {account['quota']}"
            + "".join(f"; {reason}: {count}" for reason, count in item["reasons"].items()),
            fix,
        )
        for style, item in account["styles"].items()
        if item["short_by"]
    )


def asd_of(transforms: Sequence[Any]) -> Asd | None:
    """The recipe's ASD step, if it has one."""
    return next((step for step in transforms if isinstance(step, Asd)), None)
