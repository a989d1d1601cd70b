"""A pool of adapters as a folder that plain peft answers with: one PEFT folder per member, the router, a loader.

``<member>/`` by peft's names, ``start/`` with the adapter that the run began with, if any, ``pool.json`` (members, router, its
state), ``router.safetensors``, ``route.py`` (the source of the router's choice) and ``loader.py``. Every adapter is reloaded by
plain peft and compared with the trained model.
"""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path

import torch
from torch import Tensor

from mcit.core.errors import StateError
from mcit.core.files import read_bytes, write_json, write_text
from mcit.core.records import MethodState
from mcit.core.stored import read_record
from mcit.core.tensorfile import load_tensors, save_tensors
from mcit.core.types import Batch, JsonDict
from mcit.export import portable
from mcit.export.adapter import reloaded
from mcit.export.source import Source, state_names
from mcit.export.verify import Difference, difference, logits, require_equal
from mcit.models.adapterfile import AdapterFile, concat, write_adapter
from mcit.models.pool import ROUTER, attached, members_of, using
from mcit.routers.base import router_class

START = "start"
"""Folder of the adapter that lies below all members."""
_HEAD = "from collections.abc import Mapping, Sequence\nfrom typing import Any\n\nTensor = States = Any\n\n\n"


def write(source: Source, folder: Path, batch: Batch, *, router: str | None) -> JsonDict:
    """Write, reload each member, compare; returns what export.json says. Raises StateError for a run without a pool."""
    members = members_of(source.lineage)
    if not members or router is None:
        fix = "export it with --as adapter or merged"
        raise StateError("the run keeps no pool of adapters", where=str(source.lineage.base), fix=fix)
    home = source.lineage.deltas[-1].folder / ROUTER
    model = source.model(source.stage)
    start = source.start(model)
    known = frozenset(state_names(model))
    began = [start] if start is not None else []
    differences: list[Difference] = []

    def put(name: str, file: AdapterFile, expected: Tensor, *, stages: list[str]) -> None:
        sha256, note = source.lineage.base_sha256, {"stages": stages}
        write_adapter(folder / name, file, base=source.base_name, base_sha256=sha256, known=known, note=note)
        apart = difference(expected, reloaded(source.plain_base(), folder / name, batch, source=source))
        require_equal(apart, bf16=source.bf16, what=f"adapter {name}")
        differences.append(apart)

    for file in began:  # a router may look at rows below all members
        put(START, file, logits(model, batch, device=source.device, autocast=source.bf16), stages=[])
    with attached(model, members) as live:
        for name, delta in members.items():
            with using(model, live[name]):
                expected = logits(model, batch, device=source.device, autocast=source.bf16)
            put(name, concat([*began, delta.read()]), expected, stages=[delta.folder.name])
    worst = max(differences, key=lambda d: d.absolute)
    state = read_record(home / "state.json", MethodState)["state"]
    write_json(folder / "pool.json", {"members": list(members), "router": router, "state": state})
    tensors = home / "tensors.safetensors"
    save_tensors(
        folder / "router.safetensors", load_tensors(tensors) if tensors.is_file() else {"none": torch.zeros(1)}
    )
    write_text(folder / "route.py", route_source(router_class(router)))
    write_text(folder / "loader.py", read_bytes(Path(portable.__file__)).decode())
    return {
        "relative_to": "base",
        "router": router,
        "members": list(members),
        "difference": worst.absolute,
        "largest_logit": worst.scale,
        "difference_share": worst.share,
    }


def route_source(router: type) -> str:
    """A file that holds the router's choice alone."""
    lines = textwrap.dedent(inspect.getsource(router.route)).split("\n")  # type: ignore[attr-defined]
    return _HEAD + "\n".join(line for line in lines if line.strip() != "@staticmethod")
