"""What every reader of a file yields: one decoded element at a time, with its place."""

from __future__ import annotations

from typing import Any, NamedTuple


class Element(NamedTuple):
    """A decoded element of a file, or what is wrong there."""

    line: int
    """Line of a text file, number of the row in a table; from 1."""
    value: Any = None
    problem: str = ""
    """Why it cannot be used; `value` may still hold what could be decoded."""
    fix: str = "correct the file there"


class RowError(Exception):
    """A row that cannot be used: what is wrong with it, and the cure."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.what, self.fix = what, fix
