"""Build one stage: data, adapter, trainable set, engine, context."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from mcit.core.errors import PlanError
from mcit.core.files import write_json
from mcit.core.seeds import seed_for
from mcit.core.tensorfile import save_tensors
from mcit.core.types import Plan, Row, Stage
from mcit.data.collate import collate
from mcit.data.encode import Encoder
from mcit.data.streams import StageStreams, Stream
from mcit.engine import world
from mcit.engine.base import Engine
from mcit.engine.plain import EngineSpec, PlainEngine
from mcit.methods.compose import MethodSet
from mcit.models import adapters
from mcit.models.adapterfile import write_adapter
from mcit.models.frozen import check_frozen, frozen_checksums
from mcit.models.lineage import Lineage, delta_digest, lineage_record
from mcit.models.units import audit, dtype_problems, group_of, weight_units
from mcit.train.context import Context, Names, RowBook
from mcit.train.loop import StageWork, validation


@dataclass(frozen=True)
class Material:
    """What a stage is built from."""

    plan: Plan
    model: nn.Module
    encoder: Encoder
    lineage: Lineage
    """Of the stages below."""


def build_stage(
    stage: Stage, material: Material, *, inherited: Mapping[str, Path], make_engine: Callable[..., Engine] = PlainEngine
) -> StageWork:
    """Everything a stage needs, model and adapter in place.

    `inherited` is each method's state folder left by an earlier stage. Raises PlanError when nothing is left to train.
    """
    plan, model = material.plan, material.model
    methods = MethodSet.build(stage, inherited)
    earlier = [task for s in plan.stages[: stage.index] for task in s.tasks]
    book = RowBook(earlier, stage)
    place_adapter(model, stage, material.lineage)
    names = adapters.candidates(model, stage.adapter)
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    chosen = methods.select_trainable(names, Names(stage, stage.seed, shapes))
    adapters.set_trainable(model, chosen)
    if dtype_problems(model):
        raise PlanError(f"'{dtype_problems(model)[0]}' would train in low precision", where=stage.name)
    frozen = frozen_checksums(model)
    engine = make_engine(
        model, engine_spec(stage, plan, model, methods, chosen, fresh=_is_fresh(stage, material.lineage))
    )
    streams = open_streams(stage, plan, methods, book, material.encoder)
    ctx = Context(stage, engine, streams, book, needs=methods.needs)
    work = StageWork(stage, engine, methods, streams, ctx, plan.config.checkpoint, len(plan.stages))
    work.frozen = frozen
    work.later_steps = sum(s.steps for s in plan.stages[stage.index :])
    if plan.config.eval.validate_every:
        rows = book.validation_rows()
        if rows:
            batches = functools.partial(_batches, encoder=material.encoder, size=plan.config.engine.micro_batch)
            work.validate = validation(engine, rows, batches)
            work.validate_every = plan.config.eval.validate_every
    return work


def place_adapter(model: nn.Module, stage: Stage, lineage: Lineage) -> None:
    """A fresh adapter, or the kept one of the stage below. Raises PlanError if a kept one has another shape."""
    if stage.adapter.kind == "none":
        return
    if _is_fresh(stage, lineage):
        adapters.add_lora(model, stage.adapter, seed=seed_for(stage.seed, "adapter"))
        return
    layers = adapters.lora_layers(model)
    kept = {n for n, layer in layers.items() if adapters.ACTIVE in layer.lora_A}
    ranks = {layers[n].r[adapters.ACTIVE] for n in kept}
    if ranks != {stage.adapter.rank} or kept != set(adapters.lora_targets(model, stage.adapter.targets)):
        raise PlanError(
            "the adapter kept from the stage below has another rank or other targets",
            where=f"stage {stage.name}",
            fix="use the same adapter settings, or carry: merge in the stage below",
        )
    adapters.set_dropout(model, stage.adapter.dropout)


def _is_fresh(stage: Stage, lineage: Lineage) -> bool:
    return not (lineage.deltas and lineage.deltas[-1].carry == "keep" and stage.adapter.kind == "lora")


def engine_spec(
    stage: Stage, plan: Plan, model: nn.Module, methods: MethodSet, chosen: frozenset[str], *, fresh: bool
) -> EngineSpec:
    """The engine's view of a stage."""
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    scales = {
        n: float(layer.scaling[adapters.ACTIVE])
        for n, layer in adapters.lora_layers(model).items()
        if adapters.ACTIVE in layer.lora_A
    }
    return EngineSpec(
        units=weight_units(shapes, chosen, adapter=adapters.ACTIVE, scales=scales),
        optim=stage.optim,
        total_steps=stage.steps,
        where=f"stage {stage.folder}",
        bf16=plan.config.base.dtype == "bf16",
        needs=methods.needs,
        adapter_off=functools.partial(adapters.disabled, model) if fresh and stage.adapter.kind == "lora" else None,
        is_projector=lambda name: ".lora_" not in name and group_of(name) == "projector",
        checkpointing=plan.config.engine.gradient_checkpointing,
    )


def open_streams(stage: Stage, plan: Plan, methods: MethodSet, book: RowBook, encoder: Encoder) -> StageStreams:
    """Stream ``task`` and what methods open, each with a seed of its own."""
    rows = book.stage_rows()
    total = min(stage.epochs * len(rows), stage.steps * stage.optim.batch)
    streams = [Stream("task", rows, per_step=stage.optim.batch, seed=seed_for(stage.seed, "order"), total=total)]
    for name, spec in sorted(methods.streams(book).items()):
        streams.append(Stream(name, spec.rows, per_step=spec.per_step, seed=seed_for(stage.seed, "order", name)))
    return StageStreams(
        streams,
        encoder,
        micro_batch=plan.config.engine.micro_batch,
        rank=world.rank(),
        world=world.size(),
        workers=plan.config.engine.workers,
    )


def _batches(rows: list[Row], *, encoder: Encoder, size: int) -> list[Any]:
    pad = encoder.pad_id
    return [
        collate([encoder.encode(row) for row in rows[i : i + size]], stream="validation", pad_id=pad)
        for i in range(0, len(rows), size)
    ]


def write_stage(folder: Path, work: StageWork, material: Material) -> None:
    """What a committed stage holds besides progress and manifest: delta, lineage, method state.

    Raises TrainingError when a tensor that the stage froze is not bit for bit what it was at its start.
    """
    stage, model = work.stage, material.model
    check_frozen(model, work.frozen, where=f"stage {stage.folder}")
    trained = {
        n.replace(".base_layer.", ".") for n, p in model.named_parameters() if p.requires_grad and ".lora_" not in n
    }
    file = adapters.read_live(model, full=trained)
    lineage = material.lineage
    if stage.adapter.kind == "lora":
        known = {n.replace(".base_layer.", ".") for n in model.state_dict() if ".lora_" not in n}
        unnamed = write_adapter(
            folder / "adapter",
            file,
            base=lineage.base,
            base_sha256=lineage.base_sha256,
            dropout=stage.adapter.dropout,
            known=known,
        )
        if unnamed:
            save_tensors(folder / "extra.safetensors", {n: file.full[n] for n in unnamed})
    else:
        save_tensors(folder / "weights" / "model.safetensors", file.full)
    work.methods.save(folder / "methods")
    record = lineage_record(lineage, kind=stage.adapter.kind, carry=stage.adapter.carry, digest=delta_digest(folder))
    write_json(folder / "lineage.json", record)


def audit_lines(model: nn.Module) -> list[str]:
    """The start-up audit in words: parameters trained and frozen per group, with dtypes."""
    return [
        f"{row['group']:<11} trained {row['trained']:>13,}  frozen {row['frozen']:>13,}  {', '.join(row['dtypes'])}"  # type: ignore[arg-type]
        for row in audit(model)
    ]
