"""What the skeleton of a stage says of weights and activations, kept in the cache: tracing it takes seconds, reading it none.

An entry is named by everything its numbers follow from: the model's config, adapters, the size of the micro-batch, the
versions of the libraries whose code was traced, and our own code. One that cannot be used is made anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import asdict

from mcit.core.entries import Entries, code_digest, versions
from mcit.core.files import sha256_file
from mcit.core.types import JsonDict, Plan, Stage
from mcit.engine.estimate.activations import Activations, MicroBatch
from mcit.engine.estimate.weights import Weight
from mcit.methods.compose import MethodSet

Found = tuple[dict[str, Weight], Activations]
ENTRIES = Entries("estimates", most=200)
"""One of a large model takes a few hundred KB."""


def kept(plan: Plan, stage: Stage, batch: MicroBatch, *, cuda: bool, make: Callable[[], Found]) -> Found:
    """What is kept about a stage, or what `make` finds, kept from now on.

    Never kept: code of the model's own, tensors that a method chooses, and what could not be traced.
    """
    if plan.config.base.trust_remote_code or any(
        m.overrides("select_trainable") for m in MethodSet.build(stage).methods
    ):
        return make()
    named = identity(plan, stage, batch, cuda=cuda)
    found = ENTRIES.get(named)
    if found is not None:
        with contextlib.suppress(KeyError, TypeError, ValueError):
            return _read(found)
    weights, activations = make()
    if activations.traced:
        ENTRIES.put(named, _written(weights, activations))
    return weights, activations


def identity(plan: Plan, stage: Stage, batch: MicroBatch, *, cuda: bool) -> JsonDict:
    """Everything that the numbers follow from."""
    base, engine = plan.config.base, plan.config.engine
    return {
        "config": sha256_file(plan.model_path / "config.json"),
        "dtype": base.dtype,
        "attention": base.attention,
        "cuda": cuda,
        "checkpointing": engine.gradient_checkpointing,
        "adapter": stage.adapter.model_dump(mode="json"),
        "below": [s.adapter.model_dump(mode="json") for s in plan.up_to(stage.index - 1) if s.adapter.carry == "stack"],
        "batch": [batch.rows, batch.positions, batch.supervised],
        "pixels": {name: [list(shape), str(dtype)] for name, (shape, dtype) in sorted(batch.pixels.items())},
        "libraries": versions(("torch", "transformers", "peft")),
        "code": code_digest("engine", "models", "plan"),
    }


def _written(weights: dict[str, Weight], activations: Activations) -> JsonDict:
    rows = [[n, list(w.shape), w.storage, w.trained, w.block, w.projector] for n, w in weights.items()]
    return {"weights": rows, "activations": asdict(activations)}


def _read(found: JsonDict) -> Found:
    weights = {
        name: Weight(tuple(shape), storage, trained, block, projector)
        for name, shape, storage, trained, block, projector in found["weights"]
    }
    return weights, Activations(**found["activations"])
