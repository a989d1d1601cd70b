"""What stage K alone added, as a PEFT adapter relative to the merged weights after stage K-1."""

from __future__ import annotations

import functools
import gc
from pathlib import Path
from typing import Any

from mcit.core.types import Batch, JsonDict
from mcit.export.adapter import holds, reloaded, settled, write_folder
from mcit.export.source import Source, fold_live, state_names, with_siblings
from mcit.export.verify import difference, logits, stated
from mcit.models.combine import own_effect


def write(source: Source, folder: Path, batch: Batch) -> JsonDict:
    """Write, reload on the merged weights below, compare; returns what export.json says.

    After a run on a quantised base both are compared in bf16, and the difference to the model it trained is stated.
    Raises StateError when the stage is no adapter or the reloaded model differs.
    """
    trained_on, quantised = source.base.dtype, source.quantised
    if quantised:
        low = source.model(source.stage)
        quantised_logits = logits(low, batch, device=source.device, autocast=source.bf16)
        del low
        gc.collect()
        source = source.full()
    trained = source.model(source.stage)
    expected = logits(trained, batch, device=source.device, autocast=source.bf16)
    own = own_effect(source.lineage, source.lineage.deltas[-1].index)
    file = with_siblings(own, trained)
    names = state_names(trained)
    del trained
    gc.collect()
    relative = {"relative_to": source.below(source.stage - 1).digest if source.stage > 1 else "base"}
    unnamed, copied = write_folder(source, folder, file, names=names, note=relative)
    found = reloaded(below(source), folder, batch, source=source)
    apart = difference(expected, found)
    agreed = settled(source, folder, batch, apart, below=functools.partial(below, source), what="delta")
    record: JsonDict = {
        **relative,
        "relative_to_stages": [delta.folder.name for delta in source.lineage.deltas[:-1]],
        "difference": apart.absolute,
        "largest_logit": apart.scale,
        "difference_share": apart.share,
        "not_in_peft": unnamed,
        "holds": holds(own, file),
        "copied": copied,
        **agreed,
    }
    if quantised:
        record.update(stated(quantised_logits, found, trained_on=trained_on, written=source.base.dtype))
    return record


def below(source: Source) -> Any:
    """The merged weights that the stage began with."""
    model = source.model(source.stage - 1)
    fold_live(model)
    return model
