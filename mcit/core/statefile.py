"""What a method or a router leaves in a stage's folder: ``state.json`` and ``tensors.safetensors``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Protocol

from mcit.core.errors import StateError
from mcit.core.files import write_json
from mcit.core.records import MethodState
from mcit.core.stored import read_record
from mcit.core.types import JsonDict

_FIX = "use the mcit version the stage was trained with, or start a new run"


class Stateful(Protocol):
    """Whose state is kept from one stage to the next."""

    state_version: ClassVar[int]
    tensors: Any

    def state_dict(self) -> JsonDict:
        """Small state: numbers, strings, lists."""

    def load_state_dict(self, state: JsonDict) -> None:
        """Take back what `state_dict` returned."""


def save_state(owner: Stateful, home: Path) -> None:
    """Write both files below `home`."""
    home.mkdir(parents=True, exist_ok=True)
    write_json(home / "state.json", {"state_version": owner.state_version, "state": owner.state_dict()})
    owner.tensors.save(home / "tensors.safetensors")


def load_state(owner: Stateful, home: Path) -> None:
    """Give `owner` what was left in `home`.

    Raises StateError naming the file for another state version, a key that is lacking, and one that `owner` does not give
    back once it has taken the state: another version wrote it, and it would be lost without a word.
    """
    path = home / "state.json"
    record = read_record(path, MethodState)
    if record["state_version"] != owner.state_version:
        what = f"state has version {record['state_version']}, this code writes {owner.state_version}"
        raise StateError(what, where=str(path), fix=_FIX)
    try:
        owner.load_state_dict(record["state"])
    except KeyError as error:
        raise StateError(f"state lacks the key {error}", where=str(path), fix=_FIX) from error
    owner.tensors.load(home / "tensors.safetensors")
    unknown = sorted(record["state"].keys() - owner.state_dict().keys())
    if unknown:
        raise StateError(f"state has unknown keys: {', '.join(unknown)}", where=str(path), fix=_FIX)
