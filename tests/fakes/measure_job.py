"""Bytes that an engine holds on a rank: ``python -m tests.fakes.measure_job KIND OFFLOAD FOLDER``."""

import json
import sys
from pathlib import Path

import torch

from mcit.core.schema import BaseConfig, EngineConfig, OptimConfig
from mcit.engine import world
from mcit.engine.base import EngineSpec
from mcit.engine.estimate.activations import Activations
from mcit.engine.estimate.engines import StageShape, engine_bytes
from mcit.engine.estimate.measured import measured_bytes
from mcit.engine.make import make_engine
from mcit.plan.resources import weights_of
from tests.fakes.measure import place
from tests.fakes.models import tiny_model
from tests.fakes.toy import toy_batch


def take(engine, batch):
    """One micro-batch up to the step."""
    with engine.micro_batch(last=True):
        engine.backward(engine.forward(batch).nll_N.mean(), batch)


def compare(kind, offload, dtype, what, optimizer="adamw"):
    """Measured and estimated bytes by part, of the tiny model after two steps and a backward."""
    model = place(tiny_model(dtype=dtype), what)
    weights = weights_of(model, BaseConfig(dtype=dtype))
    spec = EngineSpec(
        (), OptimConfig(kind=optimizer), 10, bf16=dtype == "bf16", is_projector=lambda n: weights[n].projector
    )
    engine = make_engine(model, spec, config=EngineConfig(kind=kind, offload=offload))
    for seed in range(2):
        take(engine, toy_batch(model, seed=seed))
        engine.step()
    take(engine, toy_batch(model, seed=2))
    found = measured_bytes(engine)
    row = engine_bytes(StageShape(weights, Activations(0, 0), optimizer, cuda=False), kind, offload, nproc=world.size())
    estimated = {name: getattr(row, name) for name in ("frozen", "trained", "gradients", "optimizer")}
    engine.discard()
    engine.finish()
    return {"measured": found, "estimated": {**estimated, "host": row.host}}


def main():
    kind, offload, folder = sys.argv[1:]
    torch.set_num_threads(1)
    world.init(120, cpu=True)
    results = {
        f"{what} {dtype}": compare(kind, offload, dtype, what)
        for what in ("lora", "full")
        for dtype in ("fp32", "bf16")
    }
    Path(folder, f"bytes-{world.rank()}.json").write_text(json.dumps(results))
    world.shutdown()


if __name__ == "__main__":
    main()
