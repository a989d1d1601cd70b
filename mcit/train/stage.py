"""Build one stage: data, adapter, trainable set, engine, context."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mcit.core.errors import PlanError, TrainingError
from mcit.core.files import write_json
from mcit.core.seeds import seed_for
from mcit.core.tensorfile import save_tensors
from mcit.core.types import Batch, Draw, Plan, Row, Stage
from mcit.data.collate import collate
from mcit.data.encode import Encoder
from mcit.data.ghost import Ghost
from mcit.data.rowbook import RowBook
from mcit.data.rowset import image_keys, joined
from mcit.data.stream import ChosenStream, Shuffle, Stream, mix
from mcit.data.streams import StageStreams
from mcit.engine import world
from mcit.engine.base import Engine, EngineSpec
from mcit.engine.checkpoint import write_moments
from mcit.engine.make import make_engine as default_engine
from mcit.evals.generator import sharing
from mcit.methods.compose import MethodSet
from mcit.models import adapters
from mcit.models.adapterfile import LoraPair, without_zeros, write_adapter
from mcit.models.experts import experts_of
from mcit.models.frozen import check_frozen, frozen_checksums
from mcit.models.lineage import Delta, Lineage, delta_digest, lineage_record
from mcit.models.pool import members_of, write_members
from mcit.models.quant import runs_bf16
from mcit.models.units import audit, block_units, dtype_problems, group_of, weight_units
from mcit.plan.selection import Names
from mcit.train import routing
from mcit.train.answers import StartAnswers
from mcit.train.basemodel import BaseModel, base_identity, load_run_base
from mcit.train.blobs import Blobs
from mcit.train.context import Context
from mcit.train.gating import monitor_of
from mcit.train.loop import StageWork, validation
from mcit.train.moved import moved
from mcit.train.probing import Probing
from mcit.train.trials import Passed


@dataclass(frozen=True)
class Material:
    """What a stage is built from."""

    plan: Plan
    model: nn.Module
    encoder: Encoder
    lineage: Lineage
    """Of the stages below."""
    blobs: Path | None = None
    """Where methods keep large tensors of the run; None is a temporary folder per stage."""


def build_stage(
    stage: Stage,
    material: Material,
    *,
    inherited: Mapping[str, Path],
    make_engine: Callable[[nn.Module, EngineSpec], Engine] | None = None,
) -> StageWork:
    """Everything a stage needs, model and adapter in place.

    `inherited` is each method's state folder left by an earlier stage. Raises PlanError when nothing is left to train.
    """
    plan, model = material.plan, material.model
    methods = MethodSet.build(stage, inherited)
    earlier = [task for s in plan.up_to(stage.index) for task in s.tasks]
    book = RowBook(earlier, stage, plan.up_to(stage.index - 1))
    router = routing.build(plan.router, material.lineage) if plan.router else None
    below = members_of(material.lineage)
    joined = router.join(list(below), book) if router and below else None
    if joined is not None and joined not in below:
        raise PlanError(
            f"the router joins '{joined}', which is no member", where=stage.name, fix=f"one of {list(below)}"
        )
    place_adapter(model, stage, material.lineage, joined=below[joined] if joined else None)
    names = adapters.candidates(model, stage.adapter)
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    chosen = methods.select_trainable(names, Names(stage, stage.seed, shapes))
    adapters.set_trainable(model, chosen)
    if dtype_problems(model):
        what, fix = f"'{dtype_problems(model)[0]}' would train in low precision", "report it: trained tensors are fp32"
        raise PlanError(what, where=stage.name, fix=fix)
    frozen = frozen_checksums(model)
    device = next(model.parameters()).device
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)  # before an engine shards them
    book.answer = StartAnswers(
        model,
        material.encoder,
        identity={"base": base_identity(plan, material.lineage.base_sha256), "weights": material.lineage.digest},
        device=next(model.parameters()).device,
        folder=material.blobs,
        sharing=sharing(plan.config.eval),
    )
    streams = open_streams(stage, plan, methods, book, material.encoder)
    fresh = joined is None and _is_fresh(stage, material.lineage)
    needs = methods.needs | (router.needs if router else frozenset())
    spec = engine_spec(stage, plan, model, methods, chosen, fresh=fresh)
    if plan.config.engine.kind != "plain" and world.size() > 1:
        drawn = (row for stream in streams.streams.values() for row in stream.rows)
        kept = (row for task in earlier for row in book.rows(task.name))  # passes may go over them
        ghost = Ghost.of(drawn, material.encoder) or Ghost.of(kept, material.encoder)
        spec = replace(spec, with_ghost=ghost)
    make = make_engine or functools.partial(default_engine, config=plan.config.engine)
    engine = make(model, spec)
    probe = streams.probe() if plan.config.engine.packs else None
    if probe is not None:
        engine.use_packs(probe, Passed.of(plan, stage, material.lineage, model, probe))
    ctx = Context(
        stage,
        engine,
        streams,
        book,
        needs=needs,
        base=base_model(plan, material, device=getattr(engine, "device", None) or next(model.parameters()).device),
        at_base=not material.lineage.deltas,
        blobs=Blobs(material.blobs) if material.blobs else None,
        members=below,
    )
    streams.choose_by(functools.partial(agreed_choice, methods, ctx))
    work = StageWork(stage, engine, methods, streams, ctx, plan.config.checkpoint, len(plan.config.stages))
    work.frozen, work.log_every = frozen, plan.config.engine.log_every
    work.device, work.trained = device, trained
    if stage.optim.moments == "keep" and material.lineage.deltas:
        work.below = material.lineage.deltas[-1].folder
    if router:
        work.router, work.member = router, joined or stage.folder
    work.monitor = monitor_of(stage)
    if plan.probes:
        work.probes = Probing(plan.probes, ctx, methods, config=plan.config.eval, watched=work.monitor is not None)
    work.later_steps = sum(s.steps for s in plan.stages if s.index > stage.index)
    if plan.config.eval.validate_every:
        rows = book.validation_rows()
        if rows:
            batch_of = functools.partial(_batch, encoder=material.encoder)
            work.validate = validation(engine, rows, batch_of, size=plan.config.engine.micro_batch)
            work.validate_every = plan.config.eval.validate_every
    return work


def base_model(plan: Plan, material: Material, *, device: torch.device) -> BaseModel:
    """The run's base, loaded anew where the stage's model is no longer it."""
    return BaseModel(
        base_identity(plan, material.lineage.base_sha256),
        material.encoder,
        functools.partial(load_run_base, plan, device=device),
        bf16=runs_bf16(plan.config.base.dtype, device),
    )


def place_adapter(model: nn.Module, stage: Stage, lineage: Lineage, *, joined: Delta | None = None) -> None:
    """A fresh adapter, the kept one of the stage below, or the `joined` member of a pool.

    Raises PlanError if one that goes on training has another shape.
    """
    if stage.adapter.kind == "none":
        return
    if joined is not None:
        adapters.attach(model, joined.read(), name=adapters.ACTIVE)
    elif _is_fresh(stage, lineage):
        adapters.add_lora(model, stage.adapter, seed=seed_for(stage.seed, "adapter"))
        return
    layers = adapters.lora_layers(model)
    kept = {n for n, layer in layers.items() if adapters.ACTIVE in layer.lora_A}
    shapes = {(layers[n].r[adapters.ACTIVE], experts_of(layers[n], adapters.ACTIVE)) for n in kept}
    targets = set(adapters.lora_targets(model, stage.adapter.targets))
    if shapes != {(stage.adapter.rank, stage.adapter.experts)} or kept != targets:
        raise PlanError(
            "the adapter kept from the stage below has another rank, other targets or experts",
            where=f"stage {stage.name}",
            fix="use the same adapter settings, or carry: merge in the stage below",
        )
    adapters.set_dropout(model, stage.adapter.dropout)


def _is_fresh(stage: Stage, lineage: Lineage) -> bool:
    return not (lineage.deltas and lineage.deltas[-1].carry == "keep" and stage.adapter.kind != "none")


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
    units = weight_units(shapes, chosen, adapter=adapters.ACTIVE, scales=scales)
    return EngineSpec(
        units=[*units, *block_units(units, shapes)],
        optim=stage.optim,
        total_steps=stage.steps,
        where=f"stage {stage.folder}",
        bf16=runs_bf16(plan.config.base.dtype, next(model.parameters()).device),
        needs=methods.needs,
        adapter_off=functools.partial(adapters.disabled, model) if fresh and stage.adapter.kind != "none" else None,
        is_projector=lambda name: ".lora_" not in name and group_of(name) == "projector",
        checkpointing=plan.config.engine.gradient_checkpointing,
        is_vision=lambda name: group_of(name) in ("projector", "tower"),
        read_every=plan.config.engine.log_every,
        seed=stage.seed,
    )


def open_streams(stage: Stage, plan: Plan, methods: MethodSet, book: RowBook, encoder: Encoder) -> StageStreams:
    """Stream ``task`` and what methods open, each with a seed of its own."""
    opened = sorted(methods.streams(book).items())
    mixed = [(name, spec.rows) for name, spec in opened if spec.mixed]
    parts: list[tuple[str, Sequence[Row]]] = [("task", book.stage_rows()), *mixed]
    count = sum(len(part) for _, part in parts)
    total = min(stage.epochs * count, stage.steps * stage.optim.batch)
    seed = seed_for(stage.seed, "order")
    given: dict[str, Any] = {"per_step": stage.optim.batch, "seed": seed, "total": total}
    if stage.optim.rows_per_image > 1 and (mixed or methods.order_of("task") is None):
        images = image_keys(joined([part for _, part in parts]))
        given["shuffle"] = Shuffle(seed, count, images=images, most=stage.optim.rows_per_image)
    streams = mix(parts, **given) if mixed else [stream_of("task", parts[0][1], methods, **given)]
    for name, spec in opened:
        if not spec.mixed:
            seed = seed_for(stage.seed, "order", spec.follows or name)
            given = {"per_step": spec.per_step, "seed": seed, "until": spec.until, "total": spec.total}
            streams.append(stream_of(name, spec.rows, methods, **given))
    return StageStreams(
        streams,
        encoder,
        micro_batch=plan.config.engine.micro_batch,
        rank=world.rank(),
        world=world.size(),
        workers=plan.config.engine.workers,
        packs=plan.config.engine.packs,
    )


def stream_of(name: str, rows: Sequence[Row], methods: MethodSet, **given: Any) -> Stream:
    """A stream in the order, in the groups and with the views of the methods that claim them."""
    maker, chooser = methods.order_of(name), methods.chooser_of(name)
    views = maker or chooser
    given |= {"group": methods.group_of(name), "show": views.on_row if views else None}
    if chooser:
        return ChosenStream(name, rows, **given)
    return Stream(name, rows, order=functools.partial(maker.order, name) if maker else None, **given)


def agreed_choice(methods: MethodSet, ctx: Context, name: str, count: int, size: int) -> Sequence[Draw]:
    """What the stream's method chooses for the coming step. Raises TrainingError where ranks choose differently."""
    chooser = methods.chooser_of(name)
    draws = [(int(row), int(view)) for row, view in chooser.choose(name, count, size, ctx)] if chooser else []
    mine = [list(draw) for draw in draws]
    if world.size() > 1 and any(other != mine for other in world.gather_objects(mine)):
        raise TrainingError(
            f"ranks choose different rows of stream '{name}'",
            where=chooser.name if chooser else name,
            fix="choose by what is equal on every rank: settings, state, all_sum",
        )
    return draws


def _batch(rows: Sequence[Row], *, encoder: Encoder) -> Batch:
    return collate([encoder.encode(row) for row in rows], stream="validation", pad_id=encoder.pad_id)


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
    if stage.adapter.carry not in ("keep", "pool"):  # these may go on training, zeros included
        file, zero = without_zeros(file)
    else:
        zero = []
    lineage = material.lineage
    if stage.adapter.kind != "none":
        known = {n.replace(".base_layer.", ".") for n in model.state_dict() if ".lora_" not in n}
        unnamed = write_adapter(
            folder / "adapter",
            file,
            base=lineage.base,
            base_sha256=lineage.base_sha256,
            dropout=stage.adapter.dropout,
            note={"zero": zero} if zero else None,
            known=known,
            mixtures=True,
        )
        if unnamed:
            save_tensors(folder / "extra.safetensors", {n: file.full[n] for n in unnamed})
    else:
        save_tensors(folder / "weights" / "model.safetensors", file.full)
    work.methods.save(folder / "methods")
    if work.left is not None:
        write_moments(folder, work.left)
    if work.router is not None:
        write_members(folder, members_of(lineage), member=work.member, stage=stage.folder)
        routing.save(work.router, folder)
    record = lineage_record(lineage, kind=stage.adapter.kind, carry=stage.adapter.carry, digest=delta_digest(folder))
    write_json(folder / "lineage.json", record)


def drift(work: StageWork, material: Material) -> dict[str, float]:
    """How far the stage moved each adapted matrix, `mcit.train.moved.moved`; empty where it trained no adapter."""
    if work.stage.adapter.kind == "none":
        return {}
    lineage = material.lineage
    below = members_of(lineage).get(work.member) if work.router else None
    if below is None and not _is_fresh(work.stage, lineage):
        below = lineage.deltas[-1]
    before: Mapping[str, LoraPair] = below.read().lora if below else {}  # what the adapter began as
    return moved(adapters.read_live(material.model).lora, before)


def audit_lines(model: nn.Module) -> list[str]:
    """The start-up audit in words: parameters trained and frozen per group, with dtypes."""
    return [
        f"{row['group']:<11} trained {row['trained']:>13,}  frozen {row['frozen']:>13,}  {', '.join(row['dtypes'])}"  # type: ignore[arg-type]
        for row in audit(model)
    ]
