"""The base of a run beside the model of the stage: what it is, and forward passes through it.

While a stage starts on the base's own weights the stage's engine runs the pass; afterwards the base is loaded anew and
freed at the end of the pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from mcit.core.files import digest_of, sha256_tree
from mcit.core.types import Batch, JsonDict, ModelOutput, Plan, Row
from mcit.data.collate import collate
from mcit.data.encode import IGNORE, Encoder
from mcit.data.rowset import lengths
from mcit.engine import world
from mcit.engine.estimate.sizes import parse_size
from mcit.engine.forward import run_model
from mcit.engine.vision import keep_features
from mcit.models.adapterfile import read_adapter
from mcit.models.lineage import apply_start
from mcit.models.load import load_base
from mcit.models.units import outermost

BATCH = 8
"""Rows of a forward pass through the base. Fixed, so that results depend on no engine setting."""
Forward = Callable[[Batch], ModelOutput]


def load_run_base(
    plan: Plan, *, device: torch.device, told: Callable[[str], None] = lambda line: None
) -> PreTrainedModel:
    """The weights that the first stage starts from: the base with the adapter that the run was given.

    With `engine.vision_cache` its tower computes a picture once; `told` gets a line where that turns out not to go.
    """
    base = plan.config.base
    model = load_base(
        plan.model_path,
        dtype=base.dtype,
        double_quant=base.double_quant,
        attention=base.attention,
        trust_remote_code=base.trust_remote_code,
        device=device,
    )
    if base.adapter:
        known = frozenset(model.state_dict())
        apply_start(model, read_adapter(Path(base.adapter), known=known))
    limit = plan.config.engine.vision_cache
    towers = outermost(model, "tower") if limit != "off" else []
    if len(towers) == 1:
        keep_features(towers[0], parse_size(limit), told=told)
    return model


def base_identity(plan: Plan, base_sha256: str) -> JsonDict:
    """What outputs of the base depend on: weights, tokenizer and processor (one checksum), adapter, precision."""
    base = plan.config.base
    given = sha256_tree(base.adapter) if base.adapter else ""
    return {"sha256": digest_of([base_sha256, given]) if given else base_sha256, "dtype": base.dtype}


class BaseModel:
    """Forward passes through the base, shared out over ranks."""

    def __init__(
        self, identity: JsonDict, encoder: Encoder, load: Callable[[], nn.Module], *, bf16: bool = False
    ) -> None:
        self.identity = identity
        self._encoder, self._load, self._bf16 = encoder, load, bf16

    def outputs(
        self,
        rows: Sequence[Row],
        *,
        forward: Forward | None,
        layers: frozenset[str],
        logits: bool = False,
        size: int = BATCH,
        watch: Callable[[int, int], None] = lambda done, total: None,
    ) -> Iterator[tuple[list[int], Batch, ModelOutput]]:
        """This rank's batches, places of their rows in `rows`, and outputs with hidden states of `layers`, no gradients.

        `forward` runs the batch when the present model is the base, else the base is loaded. Which rows share a batch
        depends on `rows` alone; batch b goes to rank b modulo ranks, and every rank runs equally many passes (sharded
        engines gather weights in them). Without `logits` nothing is supervised, so none are computed. `watch` is told how
        many rows of how many are done, at the same moments on every rank. `size` rows share a batch; a row alone in it has the
        same bits whatever is asked beside it.
        """
        order = np.argsort(-lengths(rows), kind="stable").tolist()
        groups = [order[start : start + size] for start in range(0, len(order), size)]
        run = forward or self._loaded(layers)
        for first in range(0, len(groups), world.size()):
            turn = first + world.rank()
            places = groups[turn if turn < len(groups) else 0]
            batch = collate(
                [self._encoder.encode(rows[place]) for place in places], stream="base", pad_id=self._encoder.pad_id
            )
            if not logits:
                batch = replace(batch, labels_BT=torch.full_like(batch.labels_BT, IGNORE), target_count=0)
            with torch.no_grad():
                out = run(batch)
            if turn < len(groups):
                yield places, batch, out
            watch(min(len(rows), (first + world.size()) * size), len(rows))

    def _loaded(self, layers: frozenset[str]) -> Forward:
        model = self._load().eval()
        device = next(model.parameters()).device

        def forward(batch: Batch) -> ModelOutput:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self._bf16):
                return run_model(model, batch, device=device, layers=layers)

        return forward
