"""Full weights after stage K in HF layout: model, processor, chat template, generation config, remote code."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mcit.core.types import Batch, JsonDict
from mcit.export.copied import copy_config, copy_unchanged
from mcit.export.source import Source, fold_live
from mcit.export.verify import difference, logits, require_equal, stated
from mcit.models.load import load_base, load_processor


def write(source: Source, folder: Path, batch: Batch) -> JsonDict:
    """Write, reload with plain transformers, compare; returns what export.json says.

    A run on a quantised base is merged into the base in bf16, and the difference to the model it trained is stated.
    Raises StateError when the reloaded model differs from the merged one in memory.
    """
    trained_on, quantised = source.base.dtype, source.quantised
    if quantised:
        low = source.model(source.stage)
        trained = logits(low, batch, device=source.device, autocast=source.bf16)
        del low
        gc.collect()
        source = source.full()
    model = source.model(source.stage)
    expected = logits(model, batch, device=source.device, autocast=source.bf16)
    fold_live(model)
    folded, record = save(source, model, folder, batch)
    del model
    gc.collect()
    found = reread(source, folder, batch, folded)
    record |= compared(source, expected, found)
    if quantised:
        record.update(stated(trained, found, trained_on=trained_on, written=source.base.dtype))
    return record


def save(source: Source, model: Any, folder: Path, batch: Batch) -> tuple[Tensor, JsonDict]:
    """Write a model without adapters and what never changes; its logits in the dtype that is written, and what to record."""
    dtype = torch.bfloat16 if source.bf16 else torch.float32
    one_dtype(model, dtype)
    folded = logits(model, batch, device=source.device, autocast=source.bf16)
    model.save_pretrained(str(folder))
    (folder / "generation_config.json").unlink(missing_ok=True)  # the base's own, or none where it has none
    copied = copy_unchanged(source.path, folder, template=source.template)
    own_config = copy_config(source.path, folder, dtype)
    for file in folder.iterdir():
        if file.is_file():
            file.chmod(0o644)  # save_pretrained leaves weights readable by their owner alone
    return folded, {
        "dtype": source.base.dtype,
        "remote_code": sorted(p.name for p in folder.glob("*.py")),
        "copied": [*copied, *(["config.json"] if own_config else [])],
    }


def reread(source: Source, folder: Path, batch: Batch, folded: Tensor) -> Tensor:
    """Logits of the written folder. Raises StateError when they are not those of the model that was written."""
    again = load_base(
        folder,
        dtype=source.base.dtype,
        attention=source.base.attention,
        trust_remote_code=source.base.trust_remote_code,
        device=source.device,
    )
    load_processor(folder, trust_remote_code=source.base.trust_remote_code)
    found = logits(again, batch, device=source.device, autocast=source.bf16)
    require_equal(difference(folded, found), bf16=False, what="folder")
    return found


def compared(source: Source, expected: Tensor, found: Tensor) -> JsonDict:
    """How far the written folder is from the model it was made of. Raises StateError when rounding does not explain it."""
    apart = difference(expected, found)
    require_equal(apart, bf16=source.bf16, what="merged model")
    return {"difference": apart.absolute, "largest_logit": apart.scale, "difference_share": apart.share}


def one_dtype(model: nn.Module, dtype: torch.dtype) -> None:
    """Trained tensors are fp32 beside a bf16 base; the merged folder has one dtype, as its config says."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
