"""What a plan needs before anything is loaded: memory per engine, disk, checkpoints, steps and tokens."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from mcit.core.errors import McitError, Problem
from mcit.core.schema import BaseConfig, EngineConfig
from mcit.core.types import JsonDict, Plan, PoolSize, Stage
from mcit.engine.estimate.activations import MicroBatch, activations
from mcit.engine.estimate.engines import EngineBytes, StageShape, all_engines, cheapest
from mcit.engine.estimate.sizes import size_text
from mcit.engine.estimate.weights import Weight, frozen_bytes, moment_bytes
from mcit.methods.compose import MethodSet
from mcit.models import adapters, quant
from mcit.models.load import model_config
from mcit.models.text import auto_class_of
from mcit.models.units import block_of, group_of
from mcit.plan.datasets import beside
from mcit.plan.known import Found, kept
from mcit.plan.preflight import train_sizes
from mcit.plan.selection import Names
from mcit.plan.vision import disk_problems as cache_problems
from mcit.plan.vision import room_beside
from mcit.runs.layout import RunLayout
from mcit.runs.run import find_run

WRITE_MB_S = 500.0
"""Assumed speed of the disk; ``mcit doctor`` measures it."""
_SURE = 0.25
"""Share of the activations that an estimate may be off: below it a plan is noted, beyond it refused."""


@dataclass(frozen=True)
class StageEstimate:
    """One stage in numbers."""

    folder: str
    steps: int
    tokens: int
    """Positions of all rows that its steps take, from the mean of sampled rows."""
    shape: StageShape
    rows: tuple[EngineBytes, ...]
    """Every engine."""
    delta: int
    """Bytes on disk of the stage's trained tensors and of method state."""
    kept: dict[str, int]
    """Bytes on disk of what each method keeps once per run."""
    checkpoint: int
    """Bytes on disk of one live checkpoint."""
    loading: int
    """Bytes in host memory of each process while the base is loaded: all of it, unless it is quantised on its way."""


@dataclass(frozen=True)
class RunEstimate:
    """A whole run in numbers."""

    stages: tuple[StageEstimate, ...]
    nproc: int
    batch: MicroBatch
    """The largest of any stage."""
    disk: int
    """Most bytes at a time: every stage, what methods keep per run, and the live checkpoints of the largest stage."""

    @property
    def worst(self) -> StageEstimate:
        """The stage that needs most on a device with whole weights."""
        return max(self.stages, key=lambda stage: stage.rows[0].device)

    @property
    def checkpoint_seconds(self) -> float:
        """Time of the largest live checkpoint at the assumed speed."""
        return max(stage.checkpoint for stage in self.stages) / (WRITE_MB_S * 1e6)

    def json(self) -> JsonDict:
        """Everything."""
        return {
            "nproc": self.nproc,
            "worst": self.worst.folder,
            "micro_batch": [self.batch.rows, self.batch.positions, self.batch.supervised],
            "disk": self.disk,
            "checkpoint_seconds": round(self.checkpoint_seconds, 1),
            "write_mb_s_assumed": WRITE_MB_S,
            "stages": [
                {
                    "folder": stage.folder,
                    "steps": stage.steps,
                    "tokens": stage.tokens,
                    "delta": stage.delta,
                    "kept_per_run": stage.kept,
                    "checkpoint": stage.checkpoint,
                    "traced": stage.shape.activations.traced,
                    "engines": [row.json() for row in stage.rows],
                }
                for stage in self.stages
            ],
        }


Known = dict[str, Found]
"""What stages that are alike share."""


# ---- one stage -------------------------------------------------------------------------------------------------------
def stage_model(plan: Plan, stage: Stage, *, cuda: bool) -> tuple[Any, frozenset[str]]:
    """Skeleton of a stage with its adapters, trained tensors in fp32 and marked; and their names. Nothing is allocated.

    Raises PlanError for targets or groups that match nothing.
    """
    base = plan.config.base
    config = model_config(plan.model_path, trust_remote_code=base.trust_remote_code)
    with torch.device("meta"):
        model = auto_class_of(config).from_config(
            config,
            dtype=quant.full_dtype(base.dtype, "cuda" if cuda else "cpu"),
            attn_implementation="sdpa" if base.attention == "flash_attention_2" else base.attention,
            trust_remote_code=base.trust_remote_code,
        )
        model.requires_grad_(False)
        if stage.adapter.kind != "none":
            for earlier in plan.stages[: stage.index - 1]:
                if earlier.adapter.carry == "stack":
                    adapters.add_lora(model, earlier.adapter, seed=0, name=f"stage{earlier.index:02d}")
            adapters.add_lora(model, stage.adapter, seed=0)
        shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
        names = adapters.candidates(model, stage.adapter)
        with contextlib.suppress(McitError):  # a method that cannot choose without its state is counted as choosing all
            names = MethodSet.build(stage).select_trainable(names, Names(stage, stage.seed, shapes))
        adapters.set_trainable(model, names)
    return model, names


def weights_of(model: Any, base: BaseConfig) -> dict[str, Weight]:
    """Every tensor of a skeleton by name, as it will be stored."""
    quantised = {f"{n}.weight" for n in quant.language_linears(model)} if base.dtype in quant.QUANTISED else set()
    out = {}
    for name, parameter in model.named_parameters():
        low = name.replace(".base_layer.", ".") in quantised and not parameter.requires_grad
        storage = base.dtype if low else "fp32" if parameter.dtype == torch.float32 else "bf16"
        projector = ".lora_" not in name and group_of(name) == "projector"
        out[name] = Weight(tuple(parameter.shape), storage, parameter.requires_grad, block_of(name), projector)
    return out


def largest_micro_batch(plan: Plan, *, nproc: int = 1) -> MicroBatch:
    """The largest micro-batch of a rank in any stage, from the rows that were sampled of the data sets."""
    tasks = {t.folder: t for stage in plan.stages for t in (*stage.tasks, *beside(stage))}
    sizes = [size for task in tasks.values() if not task.gone for size in train_sizes(plan, task)]
    batch = max((stage.optim.batch for stage in plan.stages if stage.steps), default=1)
    rows = max(1, min(plan.config.engine.micro_batch, -(-batch // nproc)))
    if not sizes:
        return MicroBatch(rows, 1, rows)
    largest = max(sizes, key=lambda size: sum(shape[0] for shape, _ in size.pixels.values()))
    pixels = {name: ((rows * shape[0], *shape[1:]), dtype) for name, (shape, dtype) in largest.pixels.items()}
    return MicroBatch(rows, max(s.positions for s in sizes), rows * max(s.supervised for s in sizes), pixels)


def estimate_stage(
    plan: Plan, stage: Stage, largest: MicroBatch, *, nproc: int, cuda: bool, known: Known
) -> StageEstimate:
    """One stage on every engine; activations are those of the run's `largest` micro-batch."""
    base, engine = plan.config.base, plan.config.engine
    key = _alike(plan, stage)
    if key not in known:

        def trace() -> Found:
            model, _ = stage_model(plan, stage, cuda=cuda)
            bf16, weights = quant.runs_bf16(base.dtype, "cuda" if cuda else "cpu"), weights_of(model, base)
            return weights, activations(model, largest, bf16=bf16, checkpointing=engine.gradient_checkpointing)

        known[key] = kept(plan, stage, largest, cuda=cuda, make=trace)
    weights, found = known[key]
    trained = {n: w.shape for n, w in weights.items() if w.trained}
    methods = MethodSet.build(stage)
    counts = {
        m.name: sum(any(s.name == m.name for s in e.methods) for e in plan.stages[: stage.index])
        for m in methods.methods
    }
    state = sum(m.state_bytes(trained, stages=counts[m.name]) for m in methods.methods)
    shape = StageShape(
        weights,
        found,
        optimizer=stage.optim.kind,
        double_quant=base.double_quant,
        reference=(_reference_bytes(plan, stage, weights) if "reference:stage_start" in methods.needs else 0)
        + max((m.step_copies for m in methods.methods), default=0)
        * sum(4 * w.count for w in weights.values() if w.trained),
        method_state=state,
        base_copy=frozen_bytes(_as_loaded(weights), double_quant=base.double_quant) if _loads_base(plan, stage) else 0,
        penalty=any(m.overrides("weight_penalty") for m in methods.methods),
        cuda=cuda,
    )
    sampled = [s.positions for task in stage.tasks for s in train_sizes(plan, task)[-24:]]
    mean = sum(sampled) / len(sampled) if sampled else 0
    moments = moment_bytes([w.count for w in weights.values() if w.trained], stage.optim.kind)
    return StageEstimate(
        stage.folder,
        stage.steps,
        round(min(stage.steps * stage.optim.batch, stage.epochs * stage.rows) * mean),
        shape,
        tuple(all_engines(shape, nproc=nproc, quantised=base.dtype in quant.QUANTISED)),
        delta=4 * shape.trained + state + (moments if stage.optim.moments == "keep" else 0),
        kept=_kept_per_run(plan, stage),
        checkpoint=4 * shape.trained + moments + state,
        loading=0 if base.dtype in quant.QUANTISED else frozen_bytes(weights),
    )


def _alike(plan: Plan, stage: Stage) -> str:
    """Equal for stages with the same tensors trained: same adapters, and no method that chooses anew in each stage."""
    chooses = any(m.overrides("select_trainable") for m in MethodSet.build(stage).methods)
    below = [s.adapter for s in plan.stages[: stage.index - 1] if s.adapter.carry == "stack"]
    return f"{stage.adapter!r} {below!r} {stage.index if chooses else ''}"


def _reference_bytes(plan: Plan, stage: Stage, weights: dict[str, Weight]) -> int:
    """Stage-start copies: with a fresh adapter of all trained tensors but its own, else of all."""
    before = plan.stages[stage.index - 2] if stage.index > 1 else None
    fresh = stage.adapter.kind != "none" and not (before and before.adapter.carry == "keep")
    return sum(4 * w.count for n, w in weights.items() if w.trained and not (fresh and ".lora_" in n))


def _loads_base(plan: Plan, stage: Stage) -> bool:
    """Whether a method compares with the run's base for the first time when the stage's model is no longer the base."""
    asking = {m.name for m in MethodSet.build(stage).methods if "reference:base" in m.claims.needs}
    before = {spec.name for other in plan.stages[: stage.index - 1] for spec in other.methods}
    return stage.index > 1 and bool(asking - before)


def _as_loaded(weights: dict[str, Weight]) -> dict[str, Weight]:
    """The base alone, nothing of it trained."""
    return {n: replace(w, trained=False) for n, w in weights.items() if ".lora_" not in n}


def _kept_per_run(plan: Plan, stage: Stage) -> dict[str, int]:
    """Bytes by method, from randomly sampled rows of their pools."""
    pools = {
        pool.recipe: PoolSize(
            pool.rows.get("train", 0), tuple((s.positions, s.supervised) for s in train_sizes(plan, pool)[-24:])
        )
        for pool in stage.pools
    }
    config = model_config(plan.model_path, trust_remote_code=plan.config.base.trust_remote_code)
    hidden = int(config.get_text_config().hidden_size)
    return {m.name: m.run_bytes(pools, hidden=hidden) for m in MethodSet.build(stage).methods}


# ---- the run ---------------------------------------------------------------------------------------------------------
def estimate(plan: Plan, *, nproc: int = 1, cuda: bool | None = None) -> RunEstimate:
    """Every stage on every engine, and the disk. `cuda` None means the device that the plan would use here."""
    known: Known = {}
    on = uses_cuda(plan.config.engine) if cuda is None else cuda
    batch = largest_micro_batch(plan, nproc=nproc)
    stages = tuple(estimate_stage(plan, stage, batch, nproc=nproc, cuda=on, known=known) for stage in plan.stages)
    checkpoint = plan.config.checkpoint
    live = max(s.checkpoint for s in stages) * (checkpoint.keep + 1 if checkpoint.every else 1)
    names = {name for s in stages for name in s.kept}
    kept = sum(max(s.kept.get(name, 0) for s in stages) for name in names)
    return RunEstimate(stages, nproc, batch, sum(s.delta for s in stages) + kept + live)


def uses_cuda(engine: EngineConfig) -> bool:
    """Whether a run with these settings would train on a CUDA device of this machine."""
    return engine.device == "cuda" or engine.device == "auto" and torch.cuda.is_available()


def suggestion(plan: Plan, found: RunEstimate, *, memory: int, host: int | None = None, cuda: bool = True) -> str:
    """The cheapest engine that fits so many bytes per device, or what would make one fit, in words."""
    limit = f"{size_text(memory)} per device"
    row = cheapest(found.worst.rows, device=memory, host=host, nproc=found.nproc)
    if row is not None:
        return f"cheapest engine that fits {limit}: {row.name} ({size_text(row.device)})"
    tried: list[str] = []
    for words, changed in _remedies(plan):
        tried.append(words)
        rows = estimate(changed, nproc=found.nproc, cuda=cuda).worst.rows
        row = cheapest(rows, device=memory, host=host, nproc=found.nproc)
        if row is not None:
            return f"nothing fits {limit}; {row.name} would with {' and '.join(tried)} ({size_text(row.device)})"
    even = f", not even with {' and '.join(tried)}" if tried else ""
    return f"nothing fits {limit}{even}; use more devices or a smaller base"


def _remedies(plan: Plan) -> Sequence[tuple[str, Plan]]:
    """Changes that save memory, each on top of the ones before."""
    out: list[tuple[str, Plan]] = []
    config = plan.config
    if not config.engine.gradient_checkpointing:
        config = config.model_copy(update={"engine": config.engine.model_copy(update={"gradient_checkpointing": True})})
        out.append(("engine.gradient_checkpointing: true", replace(plan, config=config)))
    if config.engine.micro_batch > 1:
        config = config.model_copy(update={"engine": config.engine.model_copy(update={"micro_batch": 1})})
        out.append(("engine.micro_batch: 1", replace(plan, config=config)))
    lora = all(s.adapter.kind != "none" and s.adapter.carry != "merge" for s in plan.stages)
    if config.base.dtype in ("fp32", "bf16") and lora:
        config = config.model_copy(update={"base": config.base.model_copy(update={"dtype": "nf4"})})
        out.append(("base.dtype: nf4", replace(plan, config=config)))
    return out


# ---- what is there ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Machine:
    """Memory of this machine in bytes; `device` is None where training happens in host memory."""

    host: int
    device: int | None


def machine(engine: EngineConfig) -> Machine:
    """Physical memory (or the limit of this process's control group), and of the smallest CUDA device."""
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and limit.read_text().strip().isdigit():
        host = min(host, int(limit.read_text()))
    device = None
    if uses_cuda(engine) and torch.cuda.is_available():
        device = min(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count()))
    return Machine(host, device)


def memory_problems(plan: Plan, found: RunEstimate, here: Machine) -> list[Problem]:
    """What cannot fit into this machine's devices and host memory; a close call is a note."""
    engine, stage = plan.config.engine, found.worst
    row = next((r for r in stage.rows if (r.kind, r.offload) == (engine.kind, engine.offload)), None)
    if row is None:
        return []  # refused elsewhere, with a better reason
    slack, problems = int(_SURE * row.activations), []
    where = f"stage {stage.folder} needs about"
    if here.device is not None and row.device > here.device:
        what = f"{where} {size_text(row.device)} per device with {row.name}, a device has {size_text(here.device)}"
        fix = suggestion(plan, found, memory=here.device, host=here.host)
        problems.append(Problem("engine", what, fix, _level(row.device - slack, here.device)))
    each = max(row.host, stage.loading) if here.device is not None else row.host + row.device
    local = min(found.nproc, int(os.environ.get("LOCAL_WORLD_SIZE", found.nproc)))  # others are on other machines
    once = row.once if plan.config.checkpoint.every else 0
    if each * local + once > here.host:
        text = f"{size_text(each * local + once)} of host memory with {row.name} on {local} process(es)"
        what = f"{where} {text}, the machine has {size_text(here.host)}"
        fix = "use fewer processes per machine, less offload, a smaller micro_batch or gradient_checkpointing"
        sure = each - (slack if here.device is None else 0)
        problems.append(Problem("engine", what, fix, _level(sure * local + once, here.host)))
    return problems


def roomy(plan: Plan, found: RunEstimate) -> bool:
    """Whether the run trains in host memory and what it needs, as traced, is at most half of what the machine has."""
    half = Machine(machine(plan.config.engine).host // 2, None)
    traced = all(stage.shape.activations.traced for stage in found.stages)
    return traced and not uses_cuda(plan.config.engine) and not memory_problems(plan, found, half)


def _level(sure: int, limit: int) -> Literal["problem", "note"]:
    return "problem" if sure > limit else "note"


def resource_problems(plan: Plan, found: RunEstimate, runs_dir: Path, *, begun: Path | None = None) -> list[Problem]:
    """Memory and disk of this machine against the estimate; and what the estimate could not see.

    `begun` is the run that will go on; without it, the one of this plan in `runs_dir`, if there is one.
    """
    root = begun or find_run(runs_dir, plan.config.name, plan.digest).layout.root
    here = machine(plan.config.engine)
    problems = [*memory_problems(plan, found, here), *cache_problems(plan)]
    problems += disk_problems(found.disk - held_by(root), runs_dir, cache=room_beside(plan, runs_dir))
    for stage in found.stages:
        if not stage.shape.activations.traced:
            what = f"activations are a rough count: {stage.shape.activations.why.splitlines()[0]}"
            return [*problems, Problem(f"stage {stage.folder}", what, "", "note")]
    return problems


def held_by(root: Path) -> int:
    """Bytes of what a run's folder holds of the estimate: its stages, drafts, checkpoints, and what methods keep once."""
    layout, held = RunLayout(root), 0
    with contextlib.suppress(FileNotFoundError):  # another process writes it: opening the run will say so
        for path in (p for folder in (layout.stages, layout.blobs) for p in folder.rglob("*")):
            held += 0 if path.is_dir() else path.lstat().st_size
    return held


def disk_problems(needed: int, runs_dir: Path, *, cache: int = 0) -> list[Problem]:
    """A folder that cannot be written, or less free space than the `needed` bytes and those of a `cache` on the same disk."""
    folder = next(p for p in [runs_dir, *runs_dir.absolute().parents] if p.exists())
    where, fix = f"--runs-dir {runs_dir}", "choose a folder that can be written"
    if not folder.is_dir():
        return [Problem(where, f"{folder} is a file", fix)]
    if not os.access(folder, os.W_OK | os.X_OK):
        return [Problem(where, f"{folder} cannot be written (permissions, or a read-only file system)", fix)]
    total, _, free = shutil.disk_usage(folder)
    if not total:
        return [Problem(where, f"{folder} is on a file system that keeps no files", fix)]
    needed = max(0, needed)  # a run that goes on may have more than it was estimated to
    if free >= needed + cache:
        return []
    beside = f" and {size_text(cache)} for engine.vision_cache" if cache else ""
    what = f"the run needs about {size_text(needed)} on disk beside what it has{beside}, {size_text(free)} are free"
    return [Problem(where, what, "free space there or choose another folder")]
