"""Adapters of stages kept apart (``carry: pool``): which there are after a stage, and one of them at a time on a model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import nn

from mcit.core.files import digest_of, sha256_file, write_json
from mcit.core.records import PoolRecord
from mcit.core.stored import read_record
from mcit.models import adapters
from mcit.models.lineage import Delta, Lineage

RECORD, ROUTER = "pool.json", "router"
_LIVE = "pool"


def members_of(lineage: Lineage) -> dict[str, Delta]:
    """The pool after the last stage, oldest member first: name to the stage that trained it last. Empty without one."""
    if not lineage.deltas or lineage.deltas[-1].carry != "pool":
        return {}
    record = read_record(lineage.deltas[-1].folder / RECORD, PoolRecord)
    by_folder = {delta.folder.name: delta for delta in lineage.deltas}
    return {name: by_folder[folder] for name, folder in record["members"]}


def write_members(folder: Path, below: Mapping[str, Delta], *, member: str, stage: str) -> None:
    """Write ``pool.json`` of a stage that trained `member`, a new one or one of those below."""
    members = {name: delta.folder.name for name, delta in below.items()} | {member: stage}
    write_json(folder / RECORD, {"member": member, "members": [[name, home] for name, home in members.items()]})


def answers_digest(lineage: Lineage) -> str:
    """Identity of what answers after the last stage: the weights, and in a pool what the router knows."""
    if not members_of(lineage):
        return lineage.digest
    home = lineage.deltas[-1].folder
    return digest_of([lineage.digest, [sha256_file(p) for p in (home / RECORD, *sorted((home / ROUTER).glob("*")))]])


@contextlib.contextmanager
def attached(model: nn.Module, members: Mapping[str, Delta]) -> Iterator[dict[str, str]]:
    """All members on the model, frozen and switched off; yields the live name of each. They are off again afterwards."""
    live = {name: f"{_LIVE}{k:03d}" for k, name in enumerate(members)}
    try:
        for name, delta in members.items():
            adapters.attach(model, delta.read(), name=live[name])
        with using(model, None):
            yield live
    finally:
        for name in live.values():
            adapters.remove(model, name=name)


@contextlib.contextmanager
def using(model: nn.Module, live: str | None) -> Iterator[None]:
    """One attached member acts, or none; adapters that are no members act as before."""
    layers = list(adapters.lora_layers(model).values())
    before = [list(layer.active_adapters) for layer in layers]
    for layer in layers:
        names: Sequence[str] = sorted(layer.lora_A, key=lambda n: (n == adapters.ACTIVE, n))
        layer._active_adapter = [n for n in names if not n.startswith(_LIVE) or n == live]
    try:
        yield
    finally:
        for layer, names in zip(layers, before, strict=True):
            layer._active_adapter = names
