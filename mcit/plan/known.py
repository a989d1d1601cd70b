"""What the skeleton of a stage says of weights and activations, kept in the cache: tracing it takes seconds, reading it none.

An entry is named by everything its numbers follow from: the model's config, adapters, the size of the micro-batch, the
versions of the libraries whose code was traced, and our own code. One that cannot be used is made anew.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import mcit
from mcit.core.errors import McitError
from mcit.core.files import digest_of, read_json, sha256_file, write_json
from mcit.core.paths import cache_dir
from mcit.core.types import JsonDict, Plan, Stage
from mcit.engine.estimate.activations import Activations, MicroBatch
from mcit.engine.estimate.weights import Weight
from mcit.methods.compose import MethodSet

Found = tuple[dict[str, Weight], Activations]
_LIBRARIES = ("torch", "transformers", "peft")
_MOST = 200
"""Entries that are kept; a large model takes a few hundred KB."""


def kept(plan: Plan, stage: Stage, batch: MicroBatch, *, cuda: bool, make: Callable[[], Found]) -> Found:
    """What is kept about a stage, or what `make` finds, kept from now on.

    Never kept: code of the model's own, tensors that a method chooses, and what could not be traced.
    """
    if plan.config.base.trust_remote_code or any(
        m.overrides("select_trainable") for m in MethodSet.build(stage).methods
    ):
        return make()
    file = cache_dir() / "estimates" / f"{digest_of(identity(plan, stage, batch, cuda=cuda))}.json"
    with contextlib.suppress(McitError, OSError, KeyError, TypeError, ValueError):
        content = read_json(file)
        if content["digest"] == digest_of(content["found"]):
            return _read(content["found"])
    weights, activations = make()
    if activations.traced:
        found = _written(weights, activations)
        with contextlib.suppress(McitError, OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, {"digest": digest_of(found), "found": found})
            _bound(file.parent)
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
        "libraries": {name: version(name) for name in _LIBRARIES},
        "code": _code(),
    }


@functools.cache
def _code() -> str:
    """Digest of the packages that build the skeleton and count in it."""
    root = Path(mcit.__file__).parent
    files = [f for part in ("engine", "models", "plan") for f in sorted((root / part).rglob("*.py"))]
    return digest_of({f.relative_to(root).as_posix(): sha256_file(f) for f in files})


def _written(weights: dict[str, Weight], activations: Activations) -> JsonDict:
    rows = [[n, list(w.shape), w.storage, w.trained, w.block, w.projector] for n, w in weights.items()]
    return {"weights": rows, "activations": asdict(activations)}


def _read(found: JsonDict) -> Found:
    weights = {
        name: Weight(tuple(shape), storage, trained, block, projector)
        for name, shape, storage, trained, block, projector in found["weights"]
    }
    return weights, Activations(**found["activations"])


def _bound(folder: Path) -> None:
    """Remove the oldest entries beyond the number that is kept; another process may be doing the same."""
    files = list(folder.glob("*.json"))
    for file in sorted(files, key=lambda f: f.stat().st_mtime)[: max(0, len(files) - _MOST)]:
        file.unlink(missing_ok=True)
