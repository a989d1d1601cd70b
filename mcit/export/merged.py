"""Full weights after stage K in HF layout: model, processor, chat template, generation config, remote code."""

from __future__ import annotations

import gc
from pathlib import Path

import torch
from torch import nn

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
    one_dtype(model, torch.bfloat16 if source.bf16 else torch.float32)
    folded = logits(model, batch, device=source.device, autocast=source.bf16)
    model.save_pretrained(str(folder))
    del model
    gc.collect()
    (folder / "generation_config.json").unlink(missing_ok=True)  # the base's own, or none where it has none
    copied = copy_unchanged(source.path, folder, template=source.template)
    own_config = copy_config(source.path, folder, torch.bfloat16 if source.bf16 else torch.float32)
    for file in folder.iterdir():
        file.chmod(0o644)  # save_pretrained leaves weights readable by their owner alone
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
    apart = difference(expected, found)
    require_equal(apart, bf16=source.bf16, what="merged model")
    record: JsonDict = {
        "dtype": source.base.dtype,
        "difference": apart.absolute,
        "largest_logit": apart.scale,
        "difference_share": apart.share,
        "remote_code": sorted(p.name for p in folder.glob("*.py")),
        "copied": [*copied, *(["config.json"] if own_config else [])],
    }
    if quantised:
        record.update(stated(trained, found, trained_on=trained_on, written=source.base.dtype))
    return record


def one_dtype(model: nn.Module, dtype: torch.dtype) -> None:
    """Trained tensors are fp32 beside a bf16 base; the merged folder has one dtype, as its config says."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
