"""Trials before a first step that were passed before, kept in the cache: an equal model on equal rows is not tried again.

A trial is named by everything that its outcome follows from: weights, modules, what trains, settings of the stage's adapter and
methods, the rows, versions, threads and our own code. One that failed is made again, so that its reason is told again.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from mcit.core.entries import Entries, code_digest, versions
from mcit.core.files import digest_of
from mcit.core.lookup import outside
from mcit.core.types import Batch, JsonDict, Plan, Stage
from mcit.engine import world
from mcit.models.lineage import Lineage
from mcit.train.basemodel import base_identity

ENTRIES = Entries("trials", most=1000)
_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "numpy")
_CODE = ("core", "data", "engine", "methods", "models", "train")


class Passed:
    """Which trials of a stage were passed before."""

    def __init__(self, identity: JsonDict) -> None:
        self._identity = identity

    @classmethod
    def of(cls, plan: Plan, stage: Stage, lineage: Lineage, model: nn.Module, probe: Batch) -> Passed | None:
        """None where several ranks would have to agree, and where code is not ours: of the base, or a method's."""
        parts = [plan.config.base.family, *(spec.name for spec in stage.methods)]
        if world.size() > 1 or plan.config.base.trust_remote_code or any(map(outside, parts)):
            return None
        methods = [[spec.name, spec.config.model_dump(mode="json")] for spec in stage.methods]
        return cls(
            {
                "base": [base_identity(plan, lineage.base_sha256), plan.config.base.model_dump(mode="json")],
                "weights": lineage.digest,
                "adapter": stage.adapter.model_dump(mode="json"),
                "methods": methods,
                "seed": stage.seed,
                "engine": [
                    plan.config.engine.kind,
                    plan.config.engine.gradient_checkpointing,
                    plan.config.engine.vision_cache != "off",
                ],
                "modules": digest_of([[name, type(one).__qualname__] for name, one in model.named_modules()]),
                "trained": digest_of(
                    [[n, list(p.shape), str(p.dtype), p.requires_grad] for n, p in model.named_parameters()]
                ),
                "rows": _digest(probe),
                "machine": _machine(next(model.parameters()).device),
                "versions": versions(_LIBRARIES),
                "code": code_digest(*_CODE),
            }
        )

    def known(self, name: str) -> bool:
        """Whether the trial of this name was passed."""
        return ENTRIES.get({**self._identity, "trial": name}) is True

    def keep(self, name: str) -> None:
        """It was passed."""
        ENTRIES.put({**self._identity, "trial": name}, True)


def _machine(device: torch.device) -> list[Any]:
    """A cache folder may be shared by machines with other cards, and not every card has every kernel."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return [str(device), card, torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()]


def _digest(batch: Batch) -> str:
    tensors = {"ids": batch.input_ids_BT, "labels": batch.labels_BT, "attention": batch.attention_BT, **batch.pixels}
    out = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        out.update(f"{name} {tuple(value.shape)} {value.dtype};".encode())
        out.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return out.hexdigest()
