"""``profile.json``: where the time of each profiled command on a run went. Nothing depends on it."""

from __future__ import annotations

from collections.abc import Sequence

from mcit.core.records import ProfileRecord
from mcit.core.stored import read_sealed, valid, write_sealed
from mcit.core.types import JsonDict
from mcit.runs.layout import RunLayout


def read_profile(layout: RunLayout) -> list[JsonDict]:
    """Each profiled command, the first one first; empty where none was. Raises StateError for a damaged file."""
    if not layout.profile.is_file():
        return []
    starts: list[JsonDict] = read_sealed(layout.profile, ProfileRecord)["starts"]
    return starts


def write_profile(layout: RunLayout, starts: Sequence[JsonDict]) -> None:
    """Write them all, whole or not at all."""
    write_sealed(layout.profile, valid(ProfileRecord, {"starts": list(starts)}, where=layout.profile))
