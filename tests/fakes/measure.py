"""Measured and estimated activations of one micro-batch on one base, side by side."""

import dataclasses

import torch
from transformers import AutoConfig

from mcit.core.schema import AdapterConfig, OptimConfig
from mcit.core.types import Turn
from mcit.data.collate import collate
from mcit.engine.estimate.activations import MicroBatch, PeakBytes, activations
from mcit.engine.plain import EngineSpec, PlainEngine
from mcit.models import adapters
from mcit.models.load import load_base
from mcit.models.text import auto_class_of

KINDS = {
    "lora": AdapterConfig(rank=8, also_train=["projector"]),
    "lora alone": AdapterConfig(rank=8, also_train=[]),
    "full": AdapterConfig(kind="none", carry="none", also_train=["projector"]),
}


def place(model, kind):
    """What trains, on a model or a skeleton."""
    if KINDS[kind].kind != "none":
        adapters.add_lora(model, KINDS[kind], seed=0)
    adapters.set_trainable(model, adapters.candidates(model, KINDS[kind]))
    return model


def engine_of(path, kind, *, dtype="fp32", attention="sdpa", checkpointing=False, optim=None):
    """A plain engine on the CPU."""
    model = place(load_base(path, dtype=dtype, attention=attention), kind)
    spec = EngineSpec((), optim or OptimConfig(), 1, bf16=dtype == "bf16", checkpointing=checkpointing)
    return PlainEngine(model, spec)


def skeleton_of(path, kind, *, dtype="fp32", attention="sdpa"):
    """The same on the meta device."""
    config = AutoConfig.from_pretrained(path)
    full = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    with torch.device("meta"):
        model = auto_class_of(config).from_config(config, dtype=full, attn_implementation=attention)
        return place(model.requires_grad_(False), kind)


def batch_of(encoder, rows):
    """Rows made to differ in length, as they do in training, so that attention needs a mask."""
    longer = [
        dataclasses.replace(r, turns=(Turn("user", r.turns[0].text + " x" * (3 * (i % 4))), *r.turns[1:]))
        for i, r in enumerate(rows)
    ]
    return collate([encoder.encode(row) for row in longer], stream="task", pad_id=encoder.pad_id)


def sizes_of(batch):
    pixels = {name: (tuple(value.shape), value.dtype) for name, value in batch.pixels.items()}
    return MicroBatch(*batch.input_ids_BT.shape, batch.target_count, pixels)


def measured(engine, batch):
    """Bytes alive after forward, and at most, in the second micro-batch of a step."""
    with engine.micro_batch(last=False):
        engine.backward(engine.forward(batch).nll_N.sum(), batch)
    known = [*engine.model.parameters(), *engine.model.buffers()]
    known += [p.grad for p in engine.model.parameters() if p.grad is not None]
    with engine.micro_batch(last=True):
        counter = PeakBytes(known)
        with counter:
            out = engine.forward(batch)
            forward = counter.now
            engine.backward(out.nll_N.sum(), batch)
            del out
    return forward, counter.peak


def both(path, encoder, rows, kind, *, dtype="fp32", attention="sdpa", checkpointing=False):
    """(measured forward, measured peak), Activations."""
    batch = batch_of(encoder, rows)
    engine = engine_of(path, kind, dtype=dtype, attention=attention, checkpointing=checkpointing)
    found = activations(
        skeleton_of(path, kind, dtype=dtype, attention=attention),
        sizes_of(batch),
        bf16=dtype == "bf16",
        checkpointing=checkpointing,
    )
    return measured(engine, batch), found
