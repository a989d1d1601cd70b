"""Whether what the vision tower makes of pictures can be kept (`engine.vision_cache`), how much that is and what it saves."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from mcit.core.errors import Problem
from mcit.core.paths import cache_dir
from mcit.core.types import JsonDict, Plan, Row, Sample, Stage
from mcit.data.encode import Encoder
from mcit.data.folder import DataFolder
from mcit.data.recipe import SPLITS
from mcit.data.rowset import image_keys
from mcit.engine.estimate.sizes import parse_size, size_text
from mcit.engine.features import held_bytes
from mcit.engine.vision import Reading, reading
from mcit.models.adapters import candidates
from mcit.models.quant import full_dtype
from mcit.models.units import group_of, lora_targets, outermost
from mcit.plan.datasets import readable
from mcit.plan.preflight import make_encoder, sampled, shared_skeleton, train_sizes

_WHERE = "engine.vision_cache"
_OFF = "set engine.vision_cache: off"


def limit_of(plan: Plan) -> int:
    """Most bytes that may be kept; 0 where nothing is."""
    wanted = plan.config.engine.vision_cache
    return 0 if wanted == "off" else parse_size(wanted)


def vision_problems(plan: Plan) -> list[Problem]:
    """A tower that trains or is not called picture by picture, and a processor that is not deterministic."""
    if not limit_of(plan):
        return []
    model: nn.Module = shared_skeleton(plan)
    towers = outermost(model, "tower")
    if len(towers) != 1:
        what = f"the model has {len(towers) or 'no'} vision tower{'s' if towers else ''}"
        return [Problem(_WHERE, what, _OFF)]
    for stage in plan.stages:
        if _trains(model, stage):
            what = f"stage {stage.folder} trains the vision tower: what that makes of a picture changes at every step"
            return [Problem(_WHERE, what, f"{_OFF}, or leave the tower out of adapter.also_train and adapter.targets")]
    shown = _shown(plan)
    if shown is None:
        return [Problem(_WHERE, "no row of this run shows a picture", _OFF, "note")]
    found = _read(plan, towers[0], shown[1])
    if isinstance(found, str):
        return [Problem(_WHERE, f"{found}, so that nothing can be kept by picture", _OFF)]
    return _processor_problems(plan, shown[0])


def disk_problems(plan: Plan) -> list[Problem]:
    """A bound above what the disk of the cache has left."""
    limit = limit_of(plan)
    left = shutil.disk_usage(_existing(cache_dir())).free + held_bytes() if limit else 0
    if limit <= left:
        return []
    what = f"is {size_text(limit)}, the disk of {cache_dir()} has {size_text(left)} for it"
    return [
        Problem(_WHERE, what, "set a smaller size, free space there, or set MCIT_CACHE to a folder of another disk")
    ]


def room_beside(plan: Plan, folder: Path) -> int:
    """Bytes that the cache may still take of the disk that `folder` is on; 0 where it is on another one."""
    limit = limit_of(plan)
    if not limit or _existing(cache_dir()).stat().st_dev != _existing(folder).stat().st_dev:
        return 0
    return max(0, limit - held_bytes())


def _existing(folder: Path) -> Path:
    return next(p for p in [folder, *folder.absolute().parents] if p.exists())


def vision_facts(plan: Plan) -> JsonDict | None:
    """Pictures, bytes and what a picture that comes again saves; None where nothing is kept or shapes do not tell.

    Arithmetic of rows with one question per picture: of a step (forward, and backward through frozen weights, or all of
    them), and of reading the prompt of an answer.
    """
    shown = _shown(plan) if limit_of(plan) else None
    towers = outermost(shared_skeleton(plan), "tower") if shown else []
    found = _read(plan, towers[0], shown[1]) if shown and len(towers) == 1 else None
    if not isinstance(found, Reading) or not found.flops:
        return None
    size = full_dtype(plan.config.base.dtype, "cpu").itemsize
    pictures = _pictures(plan)
    sizes = [size.positions for task in plan.tasks for size in train_sizes(plan, task) if size.pixels]
    decoder: nn.Module = shared_skeleton(plan).get_decoder()
    weights = sum(p.numel() for name, p in decoder.named_parameters() if p.ndim == 2 and group_of(name) != "embeddings")
    pass_ = 2 * weights * sum(sizes) / max(len(sizes), 1)
    times = 3 if any(stage.adapter.kind == "none" for stage in plan.stages) else 2
    return {
        "limit": limit_of(plan),
        "pictures": pictures,
        "bytes": pictures * found.numbers * size,
        "step": round(1 + found.flops / (times * pass_), 2) if pass_ else None,
        "prompt": round(1 + found.flops / pass_, 2) if pass_ else None,
    }


def vision_line(facts: JsonDict) -> str:
    """The facts in words."""
    said = (
        f"vision cache: {facts['pictures']:,} pictures take {size_text(facts['bytes'])} of {size_text(facts['limit'])}"
    )
    if facts["bytes"] > facts["limit"]:
        said += ", so that not all are kept"
    if facts["step"] is None:
        return said
    gains = f"a step at most {facts['step']:.2f} and a prompt {facts['prompt']:.2f} times less arithmetic"
    return f"{said}; a picture that comes again saves {gains}"


# ---- what is looked at -----------------------------------------------------------------------------------------------
def _trains(model: nn.Module, stage: Stage) -> bool:
    names = set(candidates(model, stage.adapter))
    if stage.adapter.kind != "none":
        names |= {f"{module}.weight" for module in lora_targets(model, stage.adapter.targets)}
    return any(group_of(name) == "tower" for name in names)


def _shown(plan: Plan) -> tuple[Row, Sample] | None:
    """A row with pictures, encoded anew."""
    for task in readable(plan):
        for split in SPLITS:
            for row in sampled(DataFolder.open(task.folder).rows(split)):
                if row.images:
                    return row, _anew(plan, row)
    return None


def _anew(plan: Plan, row: Row) -> Sample:
    """The row by an encoder that remembers nothing."""
    return Encoder(make_encoder(plan).processor).encode(row)


def _read(plan: Plan, tower: nn.Module, sample: Sample) -> Reading | str | None:
    """What the model's code reads for a row's pictures; None where it cannot be run on shapes."""
    pixels: dict[str, Tensor] = {
        name: value.to("meta") if value.is_floating_point() else value
        for name, value in sample.pixels.items()
        if name not in sample.token_keys
    }
    try:
        return reading(shared_skeleton(plan), tower, pixels)
    except Exception:  # someone else's code, on shapes alone: the trial before a first use says more
        return None


def _processor_problems(plan: Plan, row: Row) -> list[Problem]:
    one, other = (_pixels(_anew(plan, row)) for _ in range(2))
    if one.keys() == other.keys() and all(_alike(one[name], other[name]) for name in one):
        return []
    name = type(make_encoder(plan).processor).__name__
    what = (
        f"{name} gives other values for the same picture each time, so that engine.vision_cache would find none again"
    )
    return [Problem(f"base.model: {plan.model_path}", what, f"{_OFF}, or switch off what is random in its settings")]


def _pixels(sample: Sample) -> Mapping[str, Tensor]:
    return {name: value for name, value in sample.pixels.items() if name not in sample.token_keys}


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one == other).all())


def _pictures(plan: Plan) -> int:
    """Sets of pictures that rows of the run show."""
    rows: list[Sequence[Row]] = [
        DataFolder.open(task.folder).rows(split) for task in readable(plan) for split in SPLITS
    ]
    keys: Any = functools.reduce(np.union1d, (image_keys(part) for part in rows), np.empty(0, np.int64))
    return int((keys > 0).sum())
