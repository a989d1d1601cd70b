"""Stages 1..K as ONE PEFT adapter on the original base: ranks joined, scales folded, projector under PEFT's names."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mcit.core.tensorfile import load_tensors, save_tensors
from mcit.core.types import Batch, JsonDict
from mcit.export.copied import copy_unchanged
from mcit.export.source import Source, state_names, with_siblings
from mcit.export.verify import Difference, difference, is_equal, logits, require_equal
from mcit.models import adapters
from mcit.models.adapterfile import EXTRA, AdapterFile, truncate, write_adapter


def write(source: Source, folder: Path, batch: Batch, *, max_rank: int | None = None) -> JsonDict:
    """Write, reload with plain transformers and peft, compare; returns what export.json says.

    Raises StateError when a stage is no adapter or the reloaded model differs.
    """
    trained = source.model(source.stage)
    expected = logits(trained, batch, device=source.device, autocast=source.bf16)
    joined = source.joined(trained)
    file = with_siblings(joined, trained)
    names = state_names(trained)
    del trained
    gc.collect()
    lost = 0.0
    if max_rank is not None:
        file, lost = truncate(file, max_rank)
    unnamed, copied = write_folder(source, folder, file, names=names)
    found = reloaded(source.plain_base(), folder, batch, source=source)
    apart = difference(expected, found)
    record: JsonDict = {
        "relative_to": "base",
        "rank": max((pair.rank for pair in file.lora.values()), default=0),
        "difference": apart.absolute,
        "largest_logit": apart.scale,
        "difference_share": apart.share,
        "not_in_peft": unnamed,
        "holds": holds(joined, file),
        "copied": copied,
    }
    if max_rank is None:
        record |= settled(source, folder, batch, apart, below=source.plain_base, what="adapter")
    else:
        # A shortened adapter is another model; the file is right if it equals the shortened adapter put in place by hand.
        record.update(max_rank=max_rank, truncation_error=lost)
        shortened = source.plain_base()
        if source.quantised:
            adapters.attach_groups(shortened, file, name="short")
        else:
            adapters.merge(shortened, file)
        short = logits(shortened, batch, device=source.device, autocast=source.bf16)
        require_equal(difference(short, found), bf16=source.bf16, what="shortened adapter")
    return record


def settled(
    source: Source, folder: Path, batch: Batch, apart: Difference, *, below: Callable[[], Any], what: str
) -> JsonDict:
    """Nothing where the reloaded model is the trained one; else what a comparison in float64 says, if it says so.

    Passes in fp32 through weights with large updates round by more than the tolerance, whatever was written. In float64
    only what was written is left. Raises StateError when that differs too.
    """
    if source.bf16 or source.quantised or is_equal(apart, bf16=False):
        require_equal(apart, bf16=source.bf16, what=what)
        return {}
    expected = logits(source.model(source.stage), batch, device=source.device, float64=True)
    exact = difference(expected, reloaded(below(), folder, batch, source=source, float64=True))
    require_equal(exact, bf16=False, what=what)
    return {"difference_in_float64": exact.absolute}


def holds(trained: AdapterFile, written: AdapterFile) -> JsonDict:
    """What an adapter folder contains: low-rank updates, tensors stored whole, and those only there for PEFT's sake."""
    return {
        "matrices": len(written.lora),
        "ranks": sorted({pair.rank for pair in written.lora.values()}),
        "numbers": sum(pair.A_RI.numel() + pair.B_OR.numel() for pair in written.lora.values()),
        "whole": sorted(trained.full),
        "unchanged": sorted(set(written.full) - set(trained.full)),
    }


def write_folder(
    source: Source, folder: Path, file: AdapterFile, *, names: list[str], note: JsonDict | None = None
) -> tuple[list[str], list[str]]:
    """The PEFT folder, a file of its own for tensors that PEFT cannot name, and the base's files that do not change.

    Returns the names of these tensors and of these files.
    """
    unnamed = write_adapter(
        folder,
        file,
        base=source.base_name,
        base_sha256=source.lineage.base_sha256,
        note={"stages": [delta.folder.name for delta in source.lineage.deltas], **(note or {})},
        known=frozenset(names),
    )
    if unnamed:
        save_tensors(folder / EXTRA, {name: file.full[name] for name in unnamed})
    return unnamed, copy_unchanged(source.path, folder, template=source.template)


def reloaded(base: Any, folder: Path, batch: Batch, *, source: Source, float64: bool = False) -> Tensor:
    """Logits of `base` with the written adapter, loaded by plain peft calls."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an older name
        model = PeftModel.from_pretrained(base, str(folder))
    add_extra(model.get_base_model(), folder)
    return logits(model, batch, device=source.device, autocast=source.bf16, float64=float64)


def add_extra(model: nn.Module, folder: Path) -> None:
    """Put the tensors of ``extra.safetensors`` in place, if there are any."""
    if (folder / EXTRA).is_file():
        adapters.set_full(model, AdapterFile({}, load_tensors(folder / EXTRA)))
