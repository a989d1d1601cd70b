"""Samples -> Batch: text padded to one length, pictures of all rows in one tensor.

Shapes: B rows, T positions of the longest row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mcit.core.types import Batch, Sample
from mcit.data.encode import IGNORE, TOKEN_KEYS
from mcit.data.ragged import join


def collate(samples: Sequence[Sample], *, stream: str, pad_id: int, side: Literal["right", "left"] = "right") -> Batch:
    """Pad samples to the longest; the attention mask, not the pad id, tells padding apart.

    Pixels keep the processor's names and are concatenated over images; rows without an image add nothing. Where shapes
    differ after the first axis (rows of unequal tiling), the end is padded with zeros. `side` is left for generation.
    """
    length = max(len(sample.input_ids_T) for sample in samples)

    def stacked(rows: Sequence[Tensor], fill: int) -> Tensor:
        out = torch.full((len(rows), length), fill, dtype=torch.int64)
        for line, row in zip(out, rows, strict=True):
            part = line[length - len(row) :] if side == "left" else line[: len(row)]
            part.copy_(row)
        return out

    labels = stacked([s.labels_T for s in samples], IGNORE)
    image = None
    if any(s.image_T is not None for s in samples):
        masks = [torch.zeros_like(s.input_ids_T) if s.image_T is None else s.image_T for s in samples]
        image = stacked(masks, 0).bool()
    return Batch(
        stream=stream,
        rows=tuple(s.row for s in samples),
        input_ids_BT=stacked([s.input_ids_T for s in samples], pad_id),
        labels_BT=labels,
        attention_BT=stacked([torch.ones_like(s.input_ids_T) for s in samples], 0),
        pixels={
            key: stacked([s.pixels.get(key, torch.zeros_like(s.input_ids_T)) for s in samples], 0)
            if key in TOKEN_KEYS
            else join([s.pixels[key] for s in samples if key in s.pixels])
            for key in sorted({key for s in samples for key in s.pixels})
        },
        target_count=int((labels[:, 1:] != IGNORE).sum()),
        image_BT=image,
    )
