"""Every error a user can cause, with where it is, what is wrong and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding of a check: a place, what is wrong there and the cure."""

    where: str
    what: str
    fix: str = ""
    level: Literal["problem", "note"] = "problem"
    """A note is shown but refuses nothing."""

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        return "\n  ".join(lines + ([self.fix] if self.fix else []))


class McitError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line returns."""

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str = "", fix: str = "", problems: Sequence[Problem] = ()) -> None:
        super().__init__(what)
        self.what, self.where, self.fix = what, where, fix
        self.problems = tuple(problems) or (Problem(where, what, fix),)

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> McitError:
        """One error that carries several problems, all shown together."""
        first = problems[0]
        return cls(first.what, where=first.where, fix=first.fix, problems=problems)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class ConfigError(McitError):
    """The run config is malformed or refers to something that does not exist."""

    exit_code = 2


class PlanError(McitError):
    """The config is well formed, but what it asks for cannot work together or on this machine."""

    exit_code = 3


class DataError(McitError):
    """A row, an image, a recipe or a downloaded file is not what it must be."""

    exit_code = 4


class StateError(McitError):
    """Something on disk that mcit wrote is missing, damaged, locked or from another run."""

    exit_code = 5


class TrainingError(McitError):
    """Training cannot go on: a non-finite loss or gradient, an engine that broke its contract."""

    exit_code = 1


class Interrupted(McitError):
    """Stopped by a signal after a checkpoint; running the same command again continues."""

    exit_code = 75
