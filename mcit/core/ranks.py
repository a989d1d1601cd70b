"""How the ranks of one command act together: who writes, and how one rank's error reaches all of them.

`Ranks` is what `mcit.engine.world` offers. Errors travel as JSON, so that the message a user sees is the original one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from mcit.core import errors
from mcit.core.errors import McitError, Problem
from mcit.core.types import JsonDict

T = TypeVar("T")
_AGREED = "raised on every rank"


class Ranks(Protocol):
    """The processes of one command; every function but `rank` and `size` is called by all of them in the same order."""

    def rank(self) -> int:
        """This process's rank."""

    def size(self) -> int:
        """Number of processes."""

    def barrier(self) -> None:
        """Wait until every rank is here."""

    def broadcast_object(self, obj: Any, source: int = 0) -> Any:
        """The object of one rank, on every rank; anything JSON can hold."""

    def gather_objects(self, obj: Any) -> list[Any]:
        """The objects of all ranks in rank order, on every rank."""


class OneRank:
    """A command with one process."""

    def rank(self) -> int:
        """Always 0."""
        return 0

    def size(self) -> int:
        """Always 1."""
        return 1

    def barrier(self) -> None:
        """Nobody to wait for."""

    def broadcast_object(self, obj: Any, source: int = 0) -> Any:
        """The object itself."""
        return obj

    def gather_objects(self, obj: Any) -> list[Any]:
        """The object alone."""
        return [obj]


ONE: Ranks = OneRank()


def on_first(ranks: Ranks, action: Callable[[], T]) -> T:
    """Let rank 0 act while the others wait; every rank returns its JSON-like value or raises its error."""
    if ranks.size() == 1:
        return action()
    if ranks.rank() == 0:
        try:
            value = action()
        except Exception as error:
            ranks.broadcast_object({"error": error_json(error, rank=0)})
            error.add_note(_AGREED)
            raise
        ranks.broadcast_object({"value": value})
        return value
    found: dict[str, Any] = ranks.broadcast_object(None)
    if "error" in found:
        raise _agreed(found["error"])
    shared: T = found["value"]
    return shared


def on_all(ranks: Ranks, action: Callable[[], T]) -> T:
    """Let every rank act, without collectives inside; if one fails, all raise the error of the lowest such rank."""
    if ranks.size() == 1:
        return action()
    try:
        value = action()
    except Exception as error:
        _refuse_together(ranks.gather_objects(error_json(error, rank=ranks.rank())))
        raise  # not reached: this rank's own error is among those gathered
    _refuse_together(ranks.gather_objects(None))
    return value


def _refuse_together(found: list[JsonDict | None]) -> None:
    bad = [entry for entry in found if entry is not None]
    if bad:
        raise _agreed(bad[0] if len(bad) == len(found) else named(bad[0]))


def is_agreed(error: BaseException) -> bool:
    """Whether every rank raises this error, so that one of them can tell it for all."""
    return _AGREED in getattr(error, "__notes__", ())


def agreed(error: McitError) -> McitError:
    """Mark an error that every rank raises by itself at the same point."""
    error.add_note(_AGREED)
    return error


def error_json(error: BaseException, *, rank: int) -> JsonDict:
    """An error as JSON: class, exit code, problems. One that nobody foresaw is told by its class and text."""
    if isinstance(error, McitError):
        problems = [{"where": p.where, "what": p.what, "fix": p.fix} for p in error.problems]
        return {"rank": rank, "class": type(error).__name__, "exit": error.exit_code, "problems": problems}
    what = f"{type(error).__name__}: {error}".strip()
    found = {"where": f"rank {rank}", "what": what, "fix": ""}
    return {"rank": rank, "class": "", "exit": 1, "problems": [found]}


def named(record: JsonDict) -> JsonDict:
    """The same record with the rank in each problem's place."""
    rank = f"rank {record['rank']}"
    problems = [
        p if rank in p["where"] else {**p, "where": f"{rank}: {p['where']}" if p["where"] else rank}
        for p in record["problems"]
    ]
    return {**record, "problems": problems}


def error_from(record: JsonDict) -> McitError:
    """The error of a record, of its own class, so that the exit code is the same."""
    known = getattr(errors, str(record["class"]), None)
    cls = known if isinstance(known, type) and issubclass(known, McitError) else McitError
    return cls.of([Problem(p["where"], p["what"], p["fix"]) for p in record["problems"]])


def _agreed(record: JsonDict) -> McitError:
    return agreed(error_from(record))
