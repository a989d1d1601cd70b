"""What each engine holds on one device and in host memory, in bytes.

ZeRO: Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", SC 2020,
arXiv:1910.02054, section 5; what DeepSpeed 0.19 really allocates was read from its source and measured on two processes:
live weights and a separate flat fp32 master partition with two moments; reduced gradients as a partition; under ZeRO-3 all
weights, frozen ones too, as partitions, gathered layer by layer.
P trained numbers, N processes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from mcit.engine.estimate.activations import Activations
from mcit.engine.estimate.weights import Weight, frozen_bytes, held_gradients, moment_bytes, stored_bytes, trained_count
from mcit.engine.zerosettings import settings

ENGINES = (
    ("plain", "none"),
    ("zero1", "none"),
    ("zero2", "none"),
    ("zero1", "optimizer"),
    ("zero2", "optimizer"),
    ("zero3", "none"),
    ("zero3", "optimizer"),
    ("zero3", "parameters"),
)
"""Legal pairs of ``engine.kind`` and ``engine.offload``, cheapest in time first."""
SUGGESTED = tuple(pair for pair in ENGINES if pair != ("zero1", "optimizer"))
"""Order in which an engine is looked for: ZeRO-2 with offload holds less than ZeRO-1 with it, and is as fast."""
CUDA_RESERVE = 1 << 30
"""Assumed, not measured: context of the driver, library workspaces, communication buffers, allocator losses."""


@dataclass(frozen=True)
class ZeroSettings:
    """What of the DeepSpeed configuration takes memory. Counts are numbers, not bytes; defaults are DeepSpeed's."""

    reduce_bucket: int = 500_000_000
    """Numbers of one reduction buffer; it is allocated whole."""
    overlap: bool = False
    """Two reduction buffers instead of one."""
    live: int = 1_000_000_000
    """ZeRO-3: gathered numbers that may be alive at a time."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ZeroSettings:
        """From the section ``zero_optimization`` of a DeepSpeed config."""
        return cls(
            int(config.get("reduce_bucket_size", cls.reduce_bucket)),
            bool(config.get("overlap_comm", cls.overlap)),
            int(config.get("stage3_max_live_parameters", cls.live)),
        )


@dataclass(frozen=True)
class StageShape:
    """A stage as the estimate sees it."""

    weights: Mapping[str, Weight]
    activations: Activations
    optimizer: str = "adamw"
    """As ``optim.kind``."""
    double_quant: bool = True
    reference: int = 0
    """Bytes of stage-start copies on the device."""
    method_state: int = 0
    """Bytes that methods hold in the host memory of each process."""
    base_copy: int = 0
    """Bytes of the base if it is loaded beside the stage's model before its first step."""
    penalty: bool = False
    """Whether a method has a weight penalty: one unit is copied and differentiated."""
    cuda: bool = True
    """Whether the device has memory of its own."""

    @functools.cached_property
    def trained(self) -> int:
        """Numbers that train."""
        return trained_count(self.weights)

    @property
    def largest(self) -> int:
        """Numbers of the largest trained tensor."""
        return max((w.count for w in self.weights.values() if w.trained), default=0)


@dataclass(frozen=True)
class EngineBytes:
    """Bytes of one engine: on each device, and in the host memory of each process."""

    kind: str
    offload: str
    frozen: int = 0
    trained: int = 0
    gradients: int = 0
    optimizer: int = 0
    """Moments, and under ZeRO the fp32 master partition."""
    buffers: int = 0
    """Reduction and gathering."""
    activations: int = 0
    """Peak of a pass, or of the optimiser's own temporaries where these are more: they are never there together."""
    reference: int = 0
    reserve: int = 0
    host: int = 0
    whole: int = 0
    """ZeRO-3: on the device while the whole model is on it, which is when it is loaded, scored and handed over."""
    once: int = 0
    """In host memory of rank 0 alone: what it gathers for a checkpoint, and the largest file that is made of it."""

    @property
    def name(self) -> str:
        """``zero3 + offload parameters``."""
        return self.kind if self.offload == "none" else f"{self.kind} + offload {self.offload}"

    @property
    def short(self) -> str:
        """``zero3+par``."""
        return self.kind + {"none": "", "optimizer": "+opt", "parameters": "+par"}[self.offload]

    @property
    def device(self) -> int:
        """Bytes on one device: of a step, or with the whole model on it if that is more."""
        apart = {"host", "whole", "once"}
        return max(
            self.whole, sum(getattr(self, f.name) for f in fields(self) if f.type == "int" and f.name not in apart)
        )

    def json(self) -> dict[str, int | str]:
        """All parts and the sum."""
        return {**{f.name: getattr(self, f.name) for f in fields(self)}, "device": self.device}


def engine_bytes(
    shape: StageShape, kind: str, offload: str = "none", *, nproc: int = 1, zero: ZeroSettings | None = None
) -> EngineBytes:
    """Bytes per device and per process for one engine. Raises ValueError for a pair that is not legal."""
    if (kind, offload) not in ENGINES:
        raise ValueError(f"engine {kind} has no offload {offload}")
    base = {
        "reference": shape.reference,
        "reserve": CUDA_RESERVE if shape.cuda else 0,
        "host": shape.method_state,
    }
    if kind == "plain":
        return _plain(shape, nproc, base)
    return _zero(shape, kind, offload, nproc, zero or _own_settings(kind, offload, shape.trained), base)


def _own_settings(kind: str, offload: str, trained: int) -> ZeroSettings:
    config = settings(int(kind.removeprefix("zero")), offload, trained=trained)  # type: ignore[arg-type]
    return ZeroSettings.of(config["zero_optimization"])


def _plain(shape: StageShape, nproc: int, base: dict[str, int]) -> EngineBytes:
    P = shape.trained
    counts = [w.count for w in shape.weights.values() if w.trained]
    moments = moment_bytes(counts, shape.optimizer)
    paged = shape.optimizer.startswith("paged") and shape.cuda
    return EngineBytes(
        "plain",
        "none",
        frozen=frozen_bytes(shape.weights, double_quant=shape.double_quant),
        trained=4 * P,
        gradients=4 * P,
        optimizer=0 if paged else moments,
        buffers=4 * P if nproc > 1 else 0,  # DDP reduces in buckets of its own
        activations=max(shape.activations.peak, _step_bytes(shape, P), _penalty_bytes(shape), shape.base_copy),
        reference=base["reference"],
        reserve=base["reserve"],
        host=base["host"] + (moments if paged else 0),
        once=_checkpoint(shape, copied=shape.cuda),
    )


def _checkpoint(shape: StageShape, *, copied: bool) -> int:
    """Host bytes of writing a live checkpoint: copies of weights and moments, and the larger file while it is made."""
    weights, moments = 4 * shape.trained, moment_bytes([shape.trained], shape.optimizer)
    return (weights + moments if copied else 0) + max(weights, moments)


def _zero(
    shape: StageShape, kind: str, offload: str, nproc: int, zero: ZeroSettings, base: dict[str, int]
) -> EngineBytes:
    P, part = shape.trained, -(-shape.trained // nproc)
    moments = moment_bytes([part], shape.optimizer)
    frozen = frozen_bytes(shape.weights, double_quant=shape.double_quant)
    buckets = 4 * zero.reduce_bucket * (2 if zero.overlap else 1)
    held = 4 * held_gradients(shape.weights, nproc)
    device = {"frozen": frozen, "trained": 4 * P, "gradients": held, "optimizer": 4 * part + moments}
    host = base["host"]
    if kind == "zero1":
        device["gradients"] += 4 * P  # whole until the last micro-batch of a step
    if kind == "zero3":
        device |= {"frozen": -(-frozen // nproc), "trained": 4 * part, "gradients": 4 * part}
        buckets += _gathered(shape, zero)
    if offload != "none":
        host += device["optimizer"] + 4 * part  # fp32 gradients lie beside the moments
        device["optimizer"] = 0
        device["gradients"] = 4 * shape.largest + (4 * P if kind == "zero1" else 0)
        if kind != "zero3":
            host += 4 * part  # the partition on its way back to the device
    if offload == "parameters":
        host += device["frozen"] + device["trained"]
        device |= {"frozen": 0, "trained": 0}
    whole = 0
    if kind == "zero3":
        held_then = device["frozen"] + device["trained"] + device["optimizer"]
        whole = frozen + 4 * P + held_then + base["reserve"]
    step = _step_bytes(shape, part) + 4 * part if offload == "none" else 0
    return EngineBytes(
        kind,
        offload,
        **device,
        buffers=buckets,
        activations=max(shape.activations.peak, step, _penalty_bytes(shape), shape.base_copy),
        reference=-(-base["reference"] // nproc) if kind == "zero3" else base["reference"],
        reserve=base["reserve"],
        host=host,
        whole=whole,
        once=_checkpoint(shape, copied=True),
    )


def _gathered(shape: StageShape, zero: ZeroSettings) -> int:
    """Whole weights alive under ZeRO-3: as many as the setting allows, at least the two largest layers."""
    blocks: dict[str, int] = {}
    total = count = 0
    for weight in shape.weights.values():
        size = stored_bytes(weight, double_quant=shape.double_quant)
        blocks[weight.block] = blocks.get(weight.block, 0) + size
        total, count = total + size, count + weight.count
    allowed = int(total * min(1.0, zero.live / max(1, count)))
    return max(allowed, sum(sorted(blocks.values())[-2:]))


def _step_bytes(shape: StageShape, count: int) -> int:
    """Temporaries of AdamW's step: on CUDA torch forms square roots of all second moments at once, on a CPU one tensor's."""
    if shape.optimizer != "adamw":
        return 0
    return 4 * count if shape.cuda else 8 * min(count, shape.largest)


def _penalty_bytes(shape: StageShape) -> int:
    """A unit's copy, its gradient, and one temporary."""
    return 3 * 4 * shape.largest if shape.penalty else 0


def all_engines(
    shape: StageShape, *, nproc: int = 1, zero: ZeroSettings | None = None, quantised: bool = False
) -> list[EngineBytes]:
    """Every legal engine in the order of `ENGINES`; ZeRO-3 is left out for a quantised base, which it cannot cut."""
    pairs = [(k, o) for k, o in ENGINES if not (quantised and k == "zero3")]
    return [engine_bytes(shape, kind, offload, nproc=nproc, zero=zero) for kind, offload in pairs]


def cheapest(
    rows: Sequence[EngineBytes], *, device: int, host: int | None = None, nproc: int = 1
) -> EngineBytes | None:
    """The first engine of `SUGGESTED` whose device part fits `device` bytes, and whose host parts together fit `host`."""
    by_pair = {(row.kind, row.offload): row for row in rows}
    for pair in SUGGESTED:
        row = by_pair.get(pair)
        if row is not None and row.device <= device and (host is None or row.host * nproc + row.once <= host):
            return row
    return None
