"""The engine's part of a live checkpoint: one format for every engine and any number of ranks.

``model.safetensors`` and ``optimizer.safetensors`` hold whole fp32 tensors by parameter name, ``engine.json`` the step,
``rng/rank-000.safetensors`` the random state of each rank. Rank 0 writes what is shared.
What a stage leaves of its optimiser to the next (``optim.moments: keep``) is in its folder in the same form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mcit.core.errors import StateError
from mcit.core.files import write_json
from mcit.core.records import EngineRecord, MomentsRecord
from mcit.core.seeds import seed_for
from mcit.core.stored import read_record
from mcit.core.tensorfile import load_tensors, save_tensors
from mcit.engine import world


@dataclass(frozen=True)
class EngineState:
    """What an engine continues from; tensors are whole."""

    step: int
    weights: Mapping[str, Tensor]
    moments: Mapping[str, Mapping[str, Tensor]]
    """Optimiser tensors by parameter, then by their name in the optimiser; empty where it has none yet."""
    steps: Mapping[str, int]
    """Optimiser steps of each parameter that has moments."""


@dataclass(frozen=True)
class Moments:
    """Whole optimiser tensors by parameter, then by their name in the optimiser, and optimiser steps by parameter."""

    tensors: Mapping[str, Mapping[str, Tensor]]
    steps: Mapping[str, int]


OPTIMIZER, STEPS = "optimizer.safetensors", "optimizer.json"


def write_moments(folder: Path, moments: Moments) -> None:
    """Write what a stage leaves to the next; called by rank 0 alone."""
    _write_tensors(folder, moments.tensors)
    write_json(folder / STEPS, {"steps": dict(moments.steps), "format": 1})


def read_moments(folder: Path) -> Moments:
    """Read it again. Raises StateError for a stage that left none, or a damaged file."""
    steps = read_record(folder / STEPS, MomentsRecord)["steps"]
    tensors = _read_tensors(folder)
    if set(tensors) != set(steps):
        fix = "restore the stage's folder from a copy, or roll the stage back"
        raise StateError("moments and step counts are of different parameters", where=str(folder / OPTIMIZER), fix=fix)
    return Moments(tensors, steps)


def _write_tensors(folder: Path, moments: Mapping[str, Mapping[str, Tensor]]) -> None:
    flat = {f"{key}|{name}": t for name, tensors in moments.items() for key, t in tensors.items()}
    if flat:
        save_tensors(folder / OPTIMIZER, flat)


def _read_tensors(folder: Path) -> dict[str, dict[str, Tensor]]:
    """By parameter, then by name in the optimiser; empty where there is no file."""
    file = folder / OPTIMIZER
    moments: dict[str, dict[str, Tensor]] = {}
    for key, tensor in (load_tensors(file) if file.is_file() else {}).items():
        part, _, name = key.partition("|")
        moments.setdefault(name, {})[part] = tensor
    return moments


def write_state(folder: Path, state: EngineState) -> None:
    """Write what all ranks share; called by rank 0 alone."""
    save_tensors(folder / "model.safetensors", state.weights)
    _write_tensors(folder, state.moments)
    uneven = {name: count for name, count in state.steps.items() if count != state.step}
    write_json(folder / "engine.json", {"step": state.step, "optimizer_steps": uneven, "format": 1})


def read_state(folder: Path, shapes: Mapping[str, torch.Size]) -> EngineState:
    """Read it again. Raises StateError for a checkpoint of another model, adapter or optimiser."""
    record = read_record(folder / "engine.json", EngineRecord)
    weights = load_tensors(folder / "model.safetensors")
    if set(weights) != set(shapes) or any(weights[name].shape != shape for name, shape in shapes.items()):
        raise StateError("checkpoint is of another model or adapter", where=str(folder), fix="restore the run's config")
    moments = _read_tensors(folder)
    step = int(record["step"])
    steps = {name: int(record["optimizer_steps"].get(name, step)) for name in moments}
    return EngineState(step, weights, moments, steps)


def save_rng(folder: Path, device: torch.device) -> None:
    """The random state of this rank; every rank calls it."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    save_tensors(folder / "rng" / f"rank-{world.rank():03d}.safetensors", state)


def load_rng(folder: Path, device: torch.device, *, seed: int, step: int) -> list[str]:
    """Restore the random state of this rank, or derive it from (seed, step, rank) where the checkpoint has none.

    Returns notes for the user: the same bits are promised for the same number of ranks only where nothing is random.
    """
    saved = len(list((folder / "rng").glob("rank-*.safetensors")))
    notes = []
    if saved != world.size():
        notes.append(
            f"the checkpoint is of {saved} ranks and there are {world.size()}: dropout masks differ from an "
            "uninterrupted run, everything else is the same up to rounding"
        )
    file = folder / "rng" / f"rank-{world.rank():03d}.safetensors"
    if not file.is_file():
        torch.manual_seed(seed_for(seed, "rng", step, world.rank()))
        return notes
    state = load_tensors(file)
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    return notes
