"""Several stages combined into one adapter (`mcit.models.combine`), as a PEFT folder or merged into full weights."""

from __future__ import annotations

import gc
from pathlib import Path

from mcit.core.types import Batch, JsonDict
from mcit.export import merged
from mcit.export.adapter import holds, reloaded, write_folder
from mcit.export.source import Source, state_names, with_siblings
from mcit.export.verify import difference, logits, require_equal
from mcit.models.adapterfile import concat
from mcit.models.combine import Combination, combine, place
from mcit.models.lineage import apply_start


def write(source: Source, folder: Path, batch: Batch, *, kind: str, spec: Combination) -> JsonDict:
    """Combine, write, reload, compare with the combination put in place by hand; returns what export.json says.

    Raises StateError when the reloaded model differs from it. A run on a quantised base is merged into the base in bf16.
    """
    source = source.full() if kind == "merged" else source
    model = source.plain_base()
    start = source.start(model)
    if start is not None:
        apply_start(model, start)
    own = combine(model, source.lineage, spec)
    file = concat([start, own]) if start is not None else own
    names, written = state_names(model), with_siblings(file, model)
    place(model, own)
    expected = logits(model, batch, device=source.device, autocast=source.bf16)
    if kind == "merged":
        folded, record = merged.save(source, model, folder, batch)
        del model
        gc.collect()
        return record | merged.compared(source, expected, merged.reread(source, folder, batch, folded))
    del model
    gc.collect()
    unnamed, copied = write_folder(source, folder, written, names=names)
    found = reloaded(source.plain_base(), folder, batch, source=source)
    apart = difference(expected, found)
    require_equal(apart, bf16=source.bf16, what="combined adapter")
    return {
        "relative_to": "base",
        "rank": max((pair.rank for pair in file.lora.values()), default=0),
        "difference": apart.absolute,
        "largest_logit": apart.scale,
        "difference_share": apart.share,
        "not_in_peft": unnamed,
        "holds": holds(file, written),
        "copied": copied,
    }
