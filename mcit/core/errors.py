"""Every error a user can cause, with where it is, what is wrong and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and line break, marks that turn the direction of text, halves of surrogate pairs."""
_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|(?<!\S)\S*/\S*|/\S*|\d+")
"""Names, paths and numbers. A word is searched for a slash from its beginning alone: what is quoted may be very long."""
_ALIKE = 3
"""Problems of one kind that are shown in full."""


def printable(text: str) -> str:
    """`text` with what would steer a terminal shown as an escape: names of rows and files come from elsewhere."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding of a check: a place, what is wrong there and the cure."""

    where: str
    what: str
    fix: str = ""
    level: Literal["problem", "note"] = "problem"
    """A note is shown but refuses nothing."""

    def __str__(self) -> str:
        return "\n  ".join([self.head, *([printable(self.fix)] if self.fix else [])])

    @property
    def head(self) -> str:
        """Place and finding, for a terminal; the place is one line."""
        where = printable(self.where).replace("\n", "\\n")
        return f"{where}: {printable(self.what)}" if where else printable(self.what)


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


class GateStopped(McitError):
    """A stage did not pass its gate, or waits for a decision; what it trained is kept aside."""

    exit_code = 6


class Interrupted(McitError):
    """Stopped by a signal after a checkpoint; running the same command again continues."""

    exit_code = 75


def shown(problems: Sequence[Problem], *, limit: int = 20) -> list[str]:
    """Lines for people: problems that differ only in names and numbers are told together, `limit` lines of findings at most."""
    groups: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        groups.setdefault((_VARYING.sub("*", problem.what), problem.fix), []).append(problem)
    lines: list[str] = []
    told = named = 0
    for group in groups.values():
        part = group[: min(_ALIKE if len(group) > _ALIKE + 1 else len(group), limit - told)]
        if not part:
            break
        told, named = told + len(part), named + len(group)
        lines += [problem.head for problem in part]
        if len(group) > len(part):
            lines.append(f"  … and {len(group) - len(part):,} more like this, the last {group[-1].head}")
        if group[0].fix:
            lines.append(f"  {printable(group[0].fix)}")
    if len(problems) > told:
        rest = f"; {len(problems) - named:,} are not shown here, --json shows all" if named < len(problems) else ""
        lines.append(f"{len(problems):,} problems of {len(groups):,} kind(s){rest}")
    return lines
