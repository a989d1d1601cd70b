"""The log of what each stage trained, and selections that follow it."""

from __future__ import annotations

from collections.abc import Sequence

from mcit.core.errors import StateError
from mcit.core.files import digest_of
from mcit.core.types import JsonDict, Stage
from mcit.methods.formulas.halves import Part, part_name

Log = list[JsonDict]
"""Per stage its number and name, the trained parameter names and their sha256."""


def recorded(log: Log, trained: list[str], stage: Stage) -> Log:
    """The log up to this stage, with what it trains."""
    entry = {"stage": stage.index, "name": stage.name, "trained": trained, "sha256": digest_of(trained)}
    return [e for e in log if e["stage"] < stage.index] + [entry]


def followed(parts: Sequence[Part], log: Log, *, schedule: str) -> frozenset[str]:
    """Parts that the first entry trained (``fixed``), or that the last one froze (``complement``)."""
    fixed = schedule == "fixed"
    then = {part_name(n) for n in log[0 if fixed else -1]["trained"]}
    return frozenset(part.name for part in parts if (part.name in then) is fixed)


def checked(log: Sequence[JsonDict], *, where: str) -> Log:
    """A log from a file. Raises StateError for a list of names that is not the one that was hashed."""
    for entry in log:
        if digest_of(entry["trained"]) != entry["sha256"]:
            raise StateError(
                f"the selection of stage {entry['name']} does not match its sha256",
                where=where,
                fix="restore the run directory from a copy",
            )
    return [dict(entry) for entry in log]
